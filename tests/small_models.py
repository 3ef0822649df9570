"""Small random CogVideoX checkpoints, one of each family, written as diffusers folders.

They have every part of a published checkpoint (scheduler, VAE, transformer, T5, tokenizer) and its
family's architecture, with 2 blocks of width 96 or 128 instead of 42 of width 3072. The weights are
random but seeded: equal calls write equal files.
"""

from __future__ import annotations

import io
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import torch

FAMILIES = ("2b", "5b", "1.5-5b")
FRAMES, HEIGHT, WIDTH = 9, 64, 96
"""A clip that these models take whole: latents of 3 frames (4 with the padding of 1.5), 8x12."""

PIECES, EXTRA_IDS, T5_ROWS = 200, 100, 328
"""The word pieces of a small tokenizer, what T5 adds to them, and the rows of its embedding; the
published ones have 32000, 100 and 32128."""

SCHEDULER: dict[str, Any] = {
    "_class_name": "CogVideoXDDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "prediction_type": "v_prediction",
    "clip_sample_range": 1.0,
    "sample_max_value": 1.0,
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
}
"""The scheduler of the published 5b and 1.5-5b; the 2b's is `scheduler("2b")`."""

_TRANSFORMER: dict[str, Any] = {
    "attention_head_dim": 16,
    "in_channels": 16,
    "out_channels": 16,
    "text_embed_dim": 32,
    "time_embed_dim": 32,
    "num_layers": 2,
    "sample_frames": FRAMES,
    "sample_height": HEIGHT // 8,
    "sample_width": WIDTH // 8,
}
_FAMILY: dict[str, dict[str, Any]] = {
    "2b": {"num_attention_heads": 6, "max_text_seq_length": 20},
    "5b": {
        "num_attention_heads": 8,
        "max_text_seq_length": 20,
        "use_rotary_positional_embeddings": True,
    },
    "1.5-5b": {
        "num_attention_heads": 8,
        "max_text_seq_length": 18,
        "use_rotary_positional_embeddings": True,
        "patch_size_t": 2,
        "patch_bias": False,
    },
}


def scheduler(family: str = "5b", **changes: Any) -> dict[str, Any]:
    """A published checkpoint's scheduler configuration, with changes."""
    return {**SCHEDULER, "snr_shift_scale": 3.0 if family == "2b" else 1.0, **changes}


def make_transformer(family: str, *, seed: int = 0, **changes: Any) -> Any:
    """A random transformer of a family, float32, in evaluation mode."""
    from diffusers import CogVideoXTransformer3DModel

    torch.manual_seed(seed)
    model = CogVideoXTransformer3DModel(**{**_TRANSFORMER, **_FAMILY[family], **changes})
    with torch.no_grad():
        # As drawn, attention moves the output by 1%: too little to see a fault in it.
        for block in model.transformer_blocks:
            block.attn1.to_v.weight *= 4
            block.attn1.to_out[0].weight *= 4
    return model.eval().requires_grad_(False)


def make_vae(*, seed: int = 0) -> Any:
    """A random VAE that compresses 8x in space and 4x in time, as the published ones do."""
    from diffusers import AutoencoderKLCogVideoX

    torch.manual_seed(seed)
    blocks = 4
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8,) * blocks,
        down_block_types=("CogVideoXDownBlock3D",) * blocks,
        up_block_types=("CogVideoXUpBlock3D",) * blocks,
        latent_channels=16,
        layers_per_block=1,
        norm_num_groups=2,
        sample_height=HEIGHT,
        sample_width=WIDTH,
        scaling_factor=0.7,
    )
    return vae.eval().requires_grad_(False)


def write_checkpoint(
    folder: Path, family: str, *, seed: int = 0, pieces: bool = False, **changes: Any
) -> Path:
    """Write a whole small checkpoint into a folder.

    Args:
        pieces: whether it has a tokenizer of word pieces, as the published ones do, or of bytes.
        changes: of the transformer's configuration.
    """
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    make_transformer(family, seed=seed, **changes).save_pretrained(folder / "transformer")
    make_vae(seed=seed).save_pretrained(folder / "vae")
    if pieces:
        write_tokenizer(folder / "tokenizer")
    else:
        ByT5Tokenizer().save_pretrained(folder / "tokenizer")
    torch.manual_seed(seed)
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=T5_ROWS if pieces else 384,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=1,
            num_heads=4,
        )
    )
    encoder.save_pretrained(folder / "text_encoder")
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler(family))
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "CogVideoXPipeline",
            "scheduler": ["diffusers", "CogVideoXDDIMScheduler"],
            "text_encoder": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "ByT5Tokenizer"],
            "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
            "vae": ["diffusers", "AutoencoderKLCogVideoX"],
        },
    )
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer in the files of the published one, with `PIECES` word pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(_word_pieces())
    extra = {f"<extra_id_{i}>": PIECES + EXTRA_IDS - 1 - i for i in range(EXTRA_IDS)}
    special = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    write_json(folder / "added_tokens.json", extra)
    roles = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", {**roles, "additional_special_tokens": [*extra]})
    write_json(
        folder / "tokenizer_config.json",
        {
            **roles,
            "tokenizer_class": "T5Tokenizer",
            "extra_ids": EXTRA_IDS,
            "model_max_length": 226,
            "additional_special_tokens": [*extra],
            "added_tokens_decoder": {
                str(i): {"content": token, "special": True, **flags}
                for token, i in {**special, **extra}.items()
            },
        },
    )


@cache
def _word_pieces() -> bytes:
    """A SentencePiece model of made-up words, drawn from a seed, and a few English ones."""
    from sentencepiece import SentencePieceTrainer

    draw = random.Random(0)
    lines = ["a red cube and a green ball on a table"] * 20
    for _ in range(400):
        lengths = [draw.randint(2, 8) for _ in range(12)]
        lines.append(" ".join("".join(draw.choices("abcdefghijklm", k=n)) for n in lengths))
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=PIECES,
        normalization_rule_name="identity",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()


def change_json(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))
