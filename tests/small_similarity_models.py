"""Tiny random CLIP and DINO models, as folders that transformers opens."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
)

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
SQUARE = {
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
}


def save_clip(folder: Path, seed: int = 0) -> str:
    """Write a CLIP model of 16 dimensions whose tokens are letters, 24 at most."""
    torch.manual_seed(seed)
    letters = string.ascii_lowercase
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>"]
    vocabulary.append("<|endoftext|>")
    text = SIZES | {
        "intermediate_size": 32,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 24,
        "bos_token_id": len(vocabulary) - 2,
        "eos_token_id": len(vocabulary) - 1,
    }
    vision = SIZES | {"intermediate_size": 32, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    CLIPTokenizer(vocab={w: i for i, w in enumerate(vocabulary)}, merges=[]).save_pretrained(folder)
    CLIPImageProcessor(**SQUARE).save_pretrained(folder)
    return str(folder)


def save_dino(folder: Path, seed: int = 0) -> str:
    """Write a DINOv2 model of 16 dimensions."""
    torch.manual_seed(seed)
    Dinov2Model(Dinov2Config(**SIZES, image_size=32, patch_size=8)).save_pretrained(folder)
    BitImageProcessor(**SQUARE).save_pretrained(folder)
    return str(folder)
