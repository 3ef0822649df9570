"""Tiny image-text-to-text models (LLaVA), as folders that transformers opens.

The words of the vocabulary are few; what the model says after a question is one of them, so that a
whole answer can be one token.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
)
SPECIAL = ("<unk>", "<end>", "<image>", "<answer>")


def save_judge(folder: Path, says: str | None = None, seed: int = 0) -> str:
    """Write a model of random weights; with `says`, one that answers that to every question.

    Its words are one-hot, no layer adds to them, and the head leads from `<answer>` to `says`, and
    from there to the end.
    """
    torch.manual_seed(seed)
    words = [*SPECIAL, says or "4", "video", "frame", "edit"]
    size = 16
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
        ),
        text_config=LlamaConfig(
            vocab_size=len(words),
            hidden_size=size,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            bos_token_id=None,
            eos_token_id=words.index("<end>"),
            pad_token_id=words.index("<end>"),
        ),
        image_token_index=words.index("<image>"),
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    if says is not None:
        rig(model, words, says)
    model.save_pretrained(folder)
    processor(words).save_pretrained(folder)
    return str(folder)


def rig(model: LlavaForConditionalGeneration, words: list[str], says: str) -> None:
    language = model.model.language_model
    with torch.no_grad():
        for layer in language.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        language.embed_tokens.weight.copy_(torch.eye(len(words), language.config.hidden_size))
        head = model.lm_head.weight.zero_()
        head[words.index(says), words.index("<answer>")] = 1
        head[words.index("<end>"), words.index(says)] = 1


def processor(words: list[str]) -> LlavaProcessor:
    tokens = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, "<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        unk_token="<unk>",
        eos_token="<end>",
        pad_token="<end>",
        additional_special_tokens=["<image>", "<answer>"],
    )
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
