"""The configurations that zai-org published as CogVideoX-2b, CogVideoX-5b and CogVideoX1.5-5B.

Read on 2026-11-28 in public copies of the files, each with all of its values:
- `transformer/config.json`, `scheduler/scheduler_config.json` and `vae/config.json` of 2b and 5b:
  `configs/{transformer,scheduler}_config_{2b,5b}.json` and `configs/vae_config.json` (5b's) in
  kijai/ComfyUI-CogVideoXWrapper. 2b's VAE differs from 5b's in `scaling_factor`: 1.15258426 in
  diffusers' `scripts/convert_cogvideox_to_diffusers.py` and in quotations of the file.
- `transformer/config.json` of 1.5-5B: the same values in three copies (the model definitions of
  painebenjamin/taproot, mindspore-lab/mindone and `get_args` of diffusers' conversion script). Its
  VAE is 5b's with `invert_scale_latents`, which only image-to-video pipelines read.
- Clip sizes: the model cards. 1.5's 768x1360 stands in no configuration file: `sample_height` and
  `sample_width` there bound the grid of the rotary embedding. 96 and 170, which some copies have,
  are those of an image-to-video model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.model.checkpoint import CheckpointInfo, Family
from tests.small_models import scheduler

_COMMON: dict[str, Any] = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 64,
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 16,
    "max_text_seq_length": 226,
    "norm_elementwise_affine": True,
    "norm_eps": 1e-05,
    "out_channels": 16,
    "patch_size": 2,
    "spatial_interpolation_scale": 1.875,
    "temporal_compression_ratio": 4,
    "temporal_interpolation_scale": 1.0,
    "text_embed_dim": 4096,
    "time_embed_dim": 512,
    "timestep_activation_fn": "silu",
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "2b": {
        **_COMMON,
        "num_attention_heads": 30,
        "num_layers": 30,
        "sample_frames": 49,
        "sample_height": 60,
        "sample_width": 90,
        "use_rotary_positional_embeddings": False,
    },
    "5b": {
        **_COMMON,
        "num_attention_heads": 48,
        "num_layers": 42,
        "sample_frames": 49,
        "sample_height": 60,
        "sample_width": 90,
        "use_rotary_positional_embeddings": True,
    },
    "1.5-5b": {
        **_COMMON,
        "num_attention_heads": 48,
        "num_layers": 42,
        "patch_bias": False,
        "patch_size_t": 2,
        "sample_frames": 81,
        "sample_height": 300,
        "sample_width": 300,
        "use_learned_positional_embeddings": False,
        "use_rotary_positional_embeddings": True,
    },
}
VAE: dict[str, Any] = {
    "act_fn": "silu",
    "block_out_channels": [128, 256, 256, 512],
    "down_block_types": ["CogVideoXDownBlock3D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 16,
    "layers_per_block": 3,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_height": 480,
    "sample_width": 720,
    "scaling_factor": 0.7,
    "temporal_compression_ratio": 4,
    "up_block_types": ["CogVideoXUpBlock3D"] * 4,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
VAES: dict[str, dict[str, Any]] = {
    "2b": {**VAE, "scaling_factor": 1.15258426},
    "5b": VAE,
    "1.5-5b": {**VAE, "invert_scale_latents": True},
}
T5: dict[str, Any] = {
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "model_type": "t5",
    "num_heads": 64,
    "num_layers": 24,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "vocab_size": 32128,
}
"""The text encoder of all three: the encoder of google/t5-v1_1-xxl."""

PARAMETERS = {"2b": 1.69e9, "5b": 5.57e9, "1.5-5b": 5.57e9}
CLIPS = {"2b": (49, 480, 720), "5b": (49, 480, 720), "1.5-5b": (81, 768, 1360)}
"""Frames, height and width in pixels."""
LATENTS = {"2b": (13, 16, 60, 90), "5b": (13, 16, 60, 90), "1.5-5b": (22, 16, 96, 170)}
VIDEO_TOKENS = {"2b": 13 * 30 * 45, "5b": 13 * 30 * 45, "1.5-5b": 11 * 48 * 85}


def published(family: Family, **changes: Any) -> CheckpointInfo:
    """What `open_checkpoint` says of a published checkpoint, which is in no folder here.

    Args:
        changes: of the transformer's configuration.
    """
    transformer = {**TRANSFORMERS[family], **changes}
    return CheckpointInfo(Path(), family, transformer, VAES[family], scheduler(family), "")
