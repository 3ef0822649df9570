"""Reconstruction: many edits of one video, walked down the levels in lockstep.

Every step predicts, for each edit, a negative and a positive velocity (classifier-free guidance),
both attending to the reference: a forward of the stored latent at the same level. Edits of one
video share that reference, so K edits cost 1 + 3K forwards a step where the reference carries the
edit's prompts (`shared`, exact), 1 + 2K where it carries the empty prompt (`null`), and 2K outside
the window of injection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.algorithm.schedule import Schedule
from pipeline.model.transformer import Branch, VelocityModel
from pipeline.settings import Reconstruction

Fetch = Callable[[int], Tensor]
"""The stored trajectory's entry at a level, [F, C, H, W]."""


@dataclass(frozen=True)
class Edit:
    """One prompt to apply.

    Args:
        prompt, negative_prompt: names of prompt embeddings that the model holds.
        guidance_scale: 1 and below turn guidance off, as in diffusers, and its forwards with it.
        seed: of the noise, for the start `noise`.
        source_prompt: what the reference is described with in the mode `source`.
    """

    prompt: str
    negative_prompt: str = ""
    guidance_scale: float = 2.0
    seed: int = 0
    source_prompt: str = ""


@dataclass
class Edited:
    """What a walk made.

    Args:
        latents: [K, F, C, H, W], float32.
        largest_residual: the largest root mean square, over the steps, of what the reference's own
            step misses of the trajectory; None where no step computed it.
    """

    latents: Tensor
    largest_residual: float | None


@torch.no_grad()
def reconstruct(
    model: VelocityModel,
    trajectory: Fetch,
    edits: Sequence[Edit],
    schedule: Schedule,
    settings: Reconstruction = Reconstruction(),
    *,
    shape: tuple[int, ...] | None = None,
    noise: Tensor | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Edited:
    """Apply edits to one video.

    Args:
        model: predicts velocities; knows the embedding of every prompt that is named.
        trajectory: gives the stored entry [F, C, H, W] of a level, from 0 to `highest_stored`.
        edits: K of them.
        schedule: the levels that the trajectory was inverted along.
        shape: [F, C, H, W] of the latents, for the start `noise`; by default that of entry 0.
        noise: [F, C, H, W], where the start `noise` begins instead of at each edit's seeded draw.
        on_step: called with the level that a step reached and the latents [K, F, C, H, W].
    """
    model.blocks = settings.inject_blocks
    top = settings.start_level(schedule)
    x = _start(trajectory, edits, settings, top, shape, noise).to(model.device)
    largest: float | None = None
    for level in range(top, 0, -1):
        injected = settings.injects(top, level)
        stored = injected or settings.residual
        reference = trajectory(level).to(model.device, torch.float32) if stored else None
        v, own = _guided_velocity(model, x, edits, schedule, settings, level, reference, injected)
        x = schedule.descend(x, v, level)
        if reference is not None and own is not None:
            below = trajectory(level - 1).to(model.device, torch.float32)
            missed = below - schedule.descend(reference, own, level)
            largest = max(largest or 0.0, missed.square().mean().sqrt().item())
            if settings.residual:
                x = x + missed
        if on_step:
            on_step(level - 1, x)
    return Edited(x, largest)


def seeded_noise(shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal noise drawn on the CPU, so that every device starts from the same."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def _start(
    trajectory: Fetch,
    edits: Sequence[Edit],
    settings: Reconstruction,
    top: int,
    shape: tuple[int, ...] | None,
    noise: Tensor | None,
) -> Tensor:
    """The latents [K, F, C, H, W] that the walk starts from."""
    if settings.start != "noise":
        return torch.stack([trajectory(top).float()] * len(edits))
    if noise is not None:
        return torch.stack([noise.float()] * len(edits))
    shape = shape or tuple(trajectory(0).shape)
    return torch.stack([seeded_noise(shape, edit.seed) for edit in edits])


def _guided_velocity(
    model: VelocityModel,
    x: Tensor,
    edits: Sequence[Edit],
    schedule: Schedule,
    settings: Reconstruction,
    level: int,
    reference: Tensor | None,
    injected: bool,
) -> tuple[Tensor, Tensor | None]:
    """The guided velocities [K, F, C, H, W] of a step, and the reference's own where it is known.

    The reference's own velocity counts only where it was asked with the prompt of the inversion,
    the empty one: with another prompt it does not walk the trajectory.
    """
    timestep = schedule.levels[level].timestep
    scales = [settings.guidance(edit.guidance_scale, schedule, level) for edit in edits]
    branches: list[Branch] = []
    for latents, edit, scale in zip(x, edits, scales, strict=True):
        negative, positive = (
            _reference_prompts(settings.reference, edit) if injected else (None,) * 2
        )
        if scale > 1.0:
            branches.append(Branch(latents, edit.negative_prompt, negative))
        branches.append(Branch(latents, edit.prompt, positive))
    # One edit's halves, then the next one's: a batch that is split keeps them beside each other.
    velocities, own = model.predict(
        branches, timestep, reference if injected else None, share=settings.reference != "script"
    )
    if settings.residual and "" not in own and reference is not None:
        own[""] = model.predict([Branch(reference, "")], timestep)[0][0]
    guided, answers = [], iter(velocities)
    for scale in scales:
        if scale <= 1.0:
            guided.append(next(answers))
        else:
            negative_v, positive_v = next(answers), next(answers)
            guided.append(negative_v + scale * (positive_v - negative_v))
    return torch.stack(guided), own.get("")


def _reference_prompts(reference: str, edit: Edit) -> tuple[str, str]:
    if reference == "null":
        return "", ""
    if reference == "source":
        return edit.source_prompt, edit.source_prompt
    return edit.negative_prompt, edit.prompt
