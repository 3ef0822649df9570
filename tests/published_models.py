"""The architectures that zai-org published as CogVideoX-2b, CogVideoX-5b and CogVideoX1.5-5B."""

from __future__ import annotations

from typing import Any

_COMMON: dict[str, Any] = {
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "text_embed_dim": 4096,
    "time_embed_dim": 512,
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "2b": {
        **_COMMON,
        "num_attention_heads": 30,
        "num_layers": 30,
        "sample_height": 60,
        "sample_width": 90,
        "sample_frames": 49,
        "max_text_seq_length": 226,
        "use_rotary_positional_embeddings": False,
    },
    "5b": {
        **_COMMON,
        "num_attention_heads": 48,
        "num_layers": 42,
        "sample_height": 60,
        "sample_width": 90,
        "sample_frames": 49,
        "max_text_seq_length": 226,
        "use_rotary_positional_embeddings": True,
    },
    "1.5-5b": {
        **_COMMON,
        "num_attention_heads": 48,
        "num_layers": 42,
        "sample_height": 96,
        "sample_width": 170,
        "sample_frames": 81,
        "max_text_seq_length": 224,
        "use_rotary_positional_embeddings": True,
        "patch_size_t": 2,
        "patch_bias": False,
    },
}
VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 256, 512],
    "latent_channels": 16,
    "temporal_compression_ratio": 4,
}

PARAMETERS = {"2b": 1.69e9, "5b": 5.57e9, "1.5-5b": 5.57e9}
CLIPS = {"2b": (49, 480, 720), "5b": (49, 480, 720), "1.5-5b": (81, 768, 1360)}
"""Frames, height and width in pixels."""
LATENTS = {"2b": (13, 16, 60, 90), "5b": (13, 16, 60, 90), "1.5-5b": (22, 16, 96, 170)}
VIDEO_TOKENS = {"2b": 13 * 30 * 45, "5b": 13 * 30 * 45, "1.5-5b": 11 * 48 * 85}
