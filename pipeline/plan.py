"""What the settings come to along a schedule: where edits start, and what each step does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.algorithm.branches import Prompt
from pipeline.algorithm.guidance import guidance_at, in_window
from pipeline.algorithm.reconstruction import DenoisingStep, EditPrompts, seeded_noise
from pipeline.algorithm.schedule import Schedule
from pipeline.records import EditSpec
from pipeline.settings import Reconstruction


def start_level(settings: Reconstruction, schedule: Schedule) -> int:
    """The level that the denoising steps start from."""
    start = settings.start
    return schedule.steps if isinstance(start, str) else schedule.level_at(start)


def highest_stored(settings: Reconstruction, schedule: Schedule) -> int:
    """The highest level of the trajectory that an edit reads: the inversion may stop there."""
    top = start_level(settings, schedule)
    if settings.start != "noise" or settings.residual:
        return top
    return max((level for level in range(top, 0, -1) if injects(settings, top, level)), default=0)


def injects(settings: Reconstruction, top: int, level: int) -> bool:
    """Whether the step down from `level`, of steps that start at `top`, has reference attention."""
    blocks = settings.inject_blocks
    nowhere = blocks is not None and blocks[0] == blocks[1]
    if settings.reference == "none" or nowhere:
        return False
    return in_window(settings.inject_steps, level, top=top)


def denoising_steps(
    settings: Reconstruction, schedule: Schedule, scales: Sequence[float]
) -> list[DenoisingStep]:
    """The steps from the start level down.

    Args:
        scales: the guidance scale of each edit.
    """
    top = start_level(settings, schedule)
    return [
        DenoisingStep(
            level,
            tuple(
                guidance_at(
                    scale,
                    level,
                    top=top,
                    steps=schedule.steps,
                    window=settings.guidance_steps,
                    dynamic=settings.dynamic_guidance,
                )
                for scale in scales
            ),
            injects(settings, top, level),
        )
        for level in range(top, 0, -1)
    ]


def start_latents(
    settings: Reconstruction, edits: Sequence[EditSpec], latents: Any, schedule: Schedule
) -> Tensor:
    """The latents [K, F, C, H, W], float32, that the denoising steps start from.

    Args:
        edits: K of them.
        latents: the trajectory's entries, [L + 1, F, C, H, W].
    """
    if settings.start == "noise":
        return torch.stack([seeded_noise(latents.shape[1:], edit.seed or 0) for edit in edits])
    return torch.stack([latents[start_level(settings, schedule)].float()] * len(edits))


def edit_prompts(
    settings: Reconstruction,
    edit: EditSpec,
    source_prompt: str,
    prompt: Callable[[str], Prompt],
) -> EditPrompts:
    """The prompts of an edit, and those that its references are described with.

    Args:
        prompt: a text with its embedding.
    """
    positive, negative = edit.prompt, edit.negative_prompt or ""
    described = {
        "null": ("", ""),
        "none": ("", ""),
        "source": (source_prompt, source_prompt),
    }.get(settings.reference, (positive, negative))
    texts = (positive, negative, *described)
    known = {text: prompt(text) for text in dict.fromkeys(texts)}
    return EditPrompts(*(known[text] for text in texts))
