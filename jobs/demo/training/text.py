"""The words of the drawn world: a word-level tokenizer and a small T5 encoder."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from jobs.demo import world
from jobs.demo.training.plan import TransformerPlan

SPECIAL = ("<pad>", "</s>", "<unk>")


def words() -> list[str]:
    """Every word that a prompt of the world can hold."""
    grammar = ["a", "an", "the", "thing", "and", "moving", "curving", "on", "background"]
    names = [*world.COLOURS, *world.SHAPES, *world.BACKGROUNDS, *world.HEADINGS]
    return [*grammar, *names]


def make_tokenizer(plan: TransformerPlan) -> PreTrainedTokenizerFast:
    """A lower-casing tokenizer with one token a word and `</s>` at the end."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("removed")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=plan.text_tokens,
    )


def make_text_encoder(plan: TransformerPlan) -> T5EncoderModel:
    """An untrained T5 encoder of the planned size."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(SPECIAL) + len(words()),
            d_model=plan.text_width,
            d_kv=16,
            d_ff=2 * plan.text_width,
            num_layers=plan.text_layers,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )


def tokenize(tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> torch.Tensor:
    """Token ids, int64 [B, tokens], padded and cut to the tokenizer's length."""
    batch = tokenizer(
        prompts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    ids: torch.Tensor = batch.input_ids
    return ids
