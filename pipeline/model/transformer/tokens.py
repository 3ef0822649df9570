"""Between latents and tokens: the positions of the tokens, and the way back to a latent."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor


def rotary_embedding(
    config: Any, shape: tuple[int, int, int], device: torch.device | str
) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines [video tokens, head_dim] of the 3D rotary embedding; None for 2b.

    Source: diffusers `CogVideoXPipeline._prepare_rotary_positional_embeddings`.

    Args:
        shape: latent frames, height and width.
    """
    if not config.use_rotary_positional_embeddings:
        return None
    frames, height, width = shape
    patch = config.patch_size
    grid = (height // patch, width // patch)
    base_width, base_height = config.sample_width // patch, config.sample_height // patch
    if config.patch_size_t is None:
        crops = get_resize_crop_region_for_grid(grid, base_width, base_height)
        table = get_3d_rotary_pos_embed(
            config.attention_head_dim, crops, grid, temporal_size=frames, device=device
        )
    else:
        table = get_3d_rotary_pos_embed(
            config.attention_head_dim,
            None,
            grid,
            temporal_size=frames // config.patch_size_t,
            grid_type="slice",
            max_size=(max(base_height, grid[0]), max(base_width, grid[1])),
            device=device,
        )
    return table[0], table[1]


def unpatchify(tokens: Tensor, config: Any, shape: tuple[int, int, int]) -> Tensor:
    """Video tokens [B, N, D] to a latent [B, F, C, H, W]; the inverse of the patch embedding.

    Source: the end of diffusers `CogVideoXTransformer3DModel.forward`.
    """
    frames, height, width = shape
    p, p_t = config.patch_size, config.patch_size_t
    rows, columns = height // p, width // p
    if p_t is None:
        x = tokens.unflatten(1, (frames, rows, columns)).unflatten(-1, (-1, p, p))
        return x.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)
    x = tokens.unflatten(1, (frames // p_t, rows, columns)).unflatten(-1, (-1, p_t, p, p))
    return x.permute(0, 1, 5, 4, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(1, 2)
