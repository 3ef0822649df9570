"""What the settings come to along a schedule: where edits start, and what each step does.

A plan needs no numbers of a model, only T, the number of steps. It is shown before torch is
imported, so the two functions that make tensors import it themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.algorithm.guidance import guidance_at, in_window
from pipeline.algorithm.schedule import DenoisingStep, Schedule, level_at
from pipeline.records import EditSpec, derived_seed
from pipeline.settings import Reconstruction, Speed, Variation

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.algorithm.branches import Prompt
    from pipeline.algorithm.reconstruction import EditPrompts


@dataclass(frozen=True)
class EditPlan:
    """One edit that is to be made, or a candidate of one.

    Args:
        edit: with nothing left out (`Reconstruction.filled`).
        settings: that it is made with; of a candidate its own ones.
        number: of the candidate; 0 is the edit itself. Those of later rounds are counted on.
        source: the place of its edit among those that were asked for.
        mask: that a candidate has in the place of its edit's.
    """

    edit: EditSpec
    settings: Reconstruction
    number: int = 0
    source: int = 0
    mask: str | None = None


def edit_plans(
    settings: Reconstruction, edits: Sequence[EditSpec], number: int = 0
) -> list[EditPlan]:
    """What is to be made of edits: each with all its candidates, one edit after the other.

    Args:
        edits: with nothing left out.
        number: of the round: how often candidates were made before. After the first round only
            those are made again that another seed changes.
    """
    return [
        _plan_of(settings, edit, candidate, number, place)
        for place, edit in enumerate(edits)
        for candidate in (settings.seeded if number else range(settings.tries))
    ]


def _plan_of(
    settings: Reconstruction, edit: EditSpec, candidate: int, number: int, place: int
) -> EditPlan:
    """The plan of one candidate of an edit in the round `number`."""
    counted = candidate + number * settings.tries
    seed = derived_seed(edit.seed, "candidate", counted) if counted else edit.seed
    if candidate == 0:
        own = settings.varied(Variation()) if settings.candidates else settings
        return EditPlan(replace(edit, seed=seed), own, counted, place)
    one = settings.candidates[candidate - 1]
    changed = replace(
        edit,
        seed=seed if one.seed is None else one.seed,
        guidance_scale=edit.guidance_scale if one.guidance_scale is None else one.guidance_scale,
    )
    return EditPlan(changed, settings.varied(one), counted, place, one.mask)


def start_level(settings: Reconstruction, steps: int) -> int:
    """The level of 0..T that the denoising steps start from.

    Args:
        steps: T, the steps of the whole schedule.
    """
    start = settings.start
    return steps if isinstance(start, str) else level_at(start, steps)


def highest_stored(settings: Reconstruction, steps: int, *, masked: bool = False) -> int:
    """The highest level of the trajectory that an edit reads: the inversion may stop there.

    Args:
        settings: with all candidates.
        steps: T, the steps of the whole schedule.
        masked: whether an edit has a mask, outside of which it is the trajectory after each step.
    """
    every = [settings, *map(settings.varied, settings.candidates)]
    return max(_highest_read(one, steps, masked) for one in every)


def _highest_read(settings: Reconstruction, steps: int, masked: bool) -> int:
    top = start_level(settings, steps)
    if settings.start != "noise" or settings.residual:
        return top
    injected = (level for level in range(top, 0, -1) if injects(settings, top, level))
    return max((top - 1 if masked else 0, *injected))


AUTO_MASK_STEPS = (0.0, 0.4)
"""The window of the denoising steps in which an automatic mask is found: what an edit is to be is
decided in them, and guidance is on by default. Chosen on drawn clips (docs/masks.md)."""


def auto_mask_levels(settings: Reconstruction, steps: int) -> frozenset[int]:
    """The levels whose steps down are watched for an automatic mask; at least one.

    Args:
        steps: T, the steps of the whole schedule.
    """
    top = start_level(settings, steps)
    return frozenset(
        level for level in range(top, 0, -1) if in_window(AUTO_MASK_STEPS, level, top=top)
    )


def injects(settings: Reconstruction, top: int, level: int) -> bool:
    """Whether the step down from `level`, of steps that start at `top`, has reference attention."""
    blocks = settings.inject_blocks
    nowhere = blocks is not None and blocks[0] == blocks[1]
    if settings.reference == "none" or nowhere:
        return False
    return in_window(settings.inject_steps, level, top=top)


def denoising_steps(
    settings: Reconstruction | Sequence[Reconstruction], steps: int, scales: Sequence[float]
) -> list[DenoisingStep]:
    """The steps of edits in lockstep, from the highest of their start levels down.

    Args:
        settings: of all edits, or of each.
        steps: T, the steps of the whole schedule.
        scales: the guidance scale of each edit.
    """
    each = [settings] * len(scales) if isinstance(settings, Reconstruction) else settings
    tops = [start_level(how, steps) for how in each]
    return [
        DenoisingStep(
            level,
            tuple(
                _scale_at(how, scale, level, top, steps)
                for how, scale, top in zip(each, scales, tops, strict=True)
            ),
            tuple(
                level <= top and injects(how, top, level)
                for how, top in zip(each, tops, strict=True)
            ),
        )
        for level in range(max(tops, default=0), 0, -1)
    ]


def _scale_at(
    settings: Reconstruction, scale: float, level: int, top: int, steps: int
) -> float | None:
    """An edit's guidance scale in the step down from `level`; None above its start."""
    if level > top:
        return None
    window, dynamic = settings.guidance_steps, settings.dynamic_guidance
    return guidance_at(scale, level, top=top, steps=steps, window=window, dynamic=dynamic)


def skippable(settings: Reconstruction, speed: Speed, steps: int) -> list[int]:
    """The levels whose steps down a step cache may skip; the same for every edit of the settings.

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
        and _kind(step) == _kind(before)
    ]


def _kind(step: DenoisingStep) -> tuple[bool, bool]:
    """Whether the one edit of a step has guidance, and attends to the reference."""
    return (step.scales[0] or 0) > 1, step.inject


def start_latents(plans: Sequence[EditPlan], latents: Any, schedule: Schedule) -> Tensor:
    """The latents [K, F, C, H, W], float32, that the denoising steps start from.

    Args:
        plans: K of them.
        latents: the trajectory's entries, [L + 1, F, C, H, W].
    """
    import torch

    from pipeline.algorithm.reconstruction import mixed, seeded_noise

    starts: dict[int, Tensor] = {}
    found = []
    for plan in plans:
        noise = (
            seeded_noise(latents.shape[1:], plan.edit.seed or 0) if plan.settings.draws else None
        )
        if plan.settings.start == "noise" and noise is not None:
            found.append(noise)
            continue
        level = start_level(plan.settings, schedule.steps)
        if level not in starts:
            starts[level] = latents[level].float()
        x = starts[level]
        if noise is not None:
            clean, alpha = latents[0].float(), schedule.levels[level].alpha
            x = mixed(x, clean, noise, plan.settings.noise, alpha)
        found.append(x)
    return torch.stack(found)


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
