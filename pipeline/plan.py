"""What the settings come to along a schedule: where edits start, and what each step does.

A plan needs no numbers of a model, only T, the number of steps. It is shown before torch is
imported, so the two functions that make tensors import it themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.algorithm.guidance import guidance_at, in_window
from pipeline.algorithm.schedule import DenoisingStep, level_at
from pipeline.records import EditSpec
from pipeline.settings import Reconstruction, Speed

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.algorithm.branches import Prompt
    from pipeline.algorithm.reconstruction import EditPrompts


def start_level(settings: Reconstruction, steps: int) -> int:
    """The level of 0..T that the denoising steps start from.

    Args:
        steps: T, the steps of the whole schedule.
    """
    start = settings.start
    return steps if isinstance(start, str) else level_at(start, steps)


def highest_stored(settings: Reconstruction, steps: int) -> int:
    """The highest level of the trajectory that an edit reads: the inversion may stop there.

    Args:
        steps: T, the steps of the whole schedule.
    """
    top = start_level(settings, steps)
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
    settings: Reconstruction, steps: int, scales: Sequence[float]
) -> list[DenoisingStep]:
    """The steps from the start level down.

    Args:
        steps: T, the steps of the whole schedule.
        scales: the guidance scale of each edit.
    """
    top = start_level(settings, steps)
    return [
        DenoisingStep(
            level,
            tuple(
                guidance_at(
                    scale,
                    level,
                    top=top,
                    steps=steps,
                    window=settings.guidance_steps,
                    dynamic=settings.dynamic_guidance,
                )
                for scale in scales
            ),
            injects(settings, top, level),
        )
        for level in range(top, 0, -1)
    ]


def skippable(settings: Reconstruction, speed: Speed, steps: int) -> list[int]:
    """The levels whose steps down a step cache may skip; the same for every edit.

    Steps in which guidance or reference attention begins or ends are not among them.

    Args:
        steps: T, the steps of the whole schedule.
    """
    guided = 2.0
    plan = denoising_steps(settings, steps, [guided])
    return [
        step.level
        for before, step in itertools.pairwise(plan)
        if in_window(speed.step_cache_steps, step.level, top=plan[0].level)
        and (step.scales[0] > 1, step.inject) == (before.scales[0] > 1, before.inject)
    ]


def start_latents(
    settings: Reconstruction, edits: Sequence[EditSpec], latents: Any, steps: int
) -> Tensor:
    """The latents [K, F, C, H, W], float32, that the denoising steps start from.

    Args:
        edits: K of them.
        latents: the trajectory's entries, [L + 1, F, C, H, W].
        steps: T, the steps of the whole schedule.
    """
    import torch

    from pipeline.algorithm.reconstruction import seeded_noise

    if settings.start == "noise":
        return torch.stack([seeded_noise(latents.shape[1:], edit.seed or 0) for edit in edits])
    return torch.stack([latents[start_level(settings, steps)].float()] * len(edits))


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
    from pipeline.algorithm.reconstruction import EditPrompts

    texts = _texts(settings, edit, source_prompt)
    known = {text: prompt(text) for text in dict.fromkeys(texts)}
    return EditPrompts(*(known[text] for text in texts))


def texts_of(settings: Reconstruction, edits: Sequence[EditSpec], source_prompt: str) -> list[str]:
    """Every prompt that edits of a video need, once: the empty one too, of the inversion."""
    texts = (text for edit in edits for text in _texts(settings, edit, source_prompt))
    return list(dict.fromkeys(("", *texts)))


def _texts(
    settings: Reconstruction, edit: EditSpec, source_prompt: str
) -> tuple[str, str, str, str]:
    """An edit's positive and negative prompt, and those of the references to each."""
    positive, negative = edit.prompt, edit.negative_prompt or ""
    described = {
        "empty": ("", ""),
        "none": ("", ""),
        "source": (source_prompt, source_prompt),
    }.get(settings.reference, (positive, negative))
    return positive, negative, *described
