"""Classifier-free guidance, and how its scale runs over the denoising steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def classifier_free(negative: Tensor, positive: Tensor, scale: float) -> Tensor:
    """The guided velocity (Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022).

    Args:
        negative, positive: velocities of the two prompts, the same shape.
    """
    return negative + scale * (positive - negative)


def guidance_at(
    scale: float,
    level: int,
    *,
    top: int,
    steps: int,
    window: tuple[float, float] = (0.0, 1.0),
    dynamic: bool = False,
) -> float:
    """The guidance scale of the denoising step down from `level`.

    A scale of at most 1 turns guidance off at all levels, as in diffusers.

    Args:
        scale: the edit's own.
        top: the level that the denoising steps start from.
        steps: T, the levels of the schedule above the clean latent.
        window: the part of the denoising steps with guidance, as fractions of them.
        dynamic: let it grow from 1 to 1 + scale along the schedule. The formula is that of
            diffusers' `use_dynamic_cfg`, with the step's number in the place of `num_steps - t`,
            where diffusers takes the training timestep for t.
    """
    if scale <= 1:
        return scale
    if not in_window(window, level, top=top):
        return 1.0
    if not dynamic:
        return scale
    progress = (steps - level) / steps
    return 1 + scale * (1 - math.cos(math.pi * progress**5)) / 2


def in_window(window: tuple[float, float], level: int, *, top: int) -> bool:
    """Whether the step down from `level`, of steps that start at `top`, lies in their window."""
    first, last = window
    return first <= (top - level) / top < last
