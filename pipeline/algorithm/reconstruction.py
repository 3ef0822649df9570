"""Reconstruction: many edits of one video, denoised level by level in lockstep.

Every step predicts, for each edit, a negative and a positive velocity (classifier-free guidance),
both attending to the reference: a forward of the stored latent at the same level. Edits of one
video share that reference, so K edits cost 1 + 3K forwards a step where the reference carries the
edit's own prompts, 1 + 2K where it carries the empty prompt, and 2K outside of the window of
reference attention. Edits need not be alike: each starts at a level of its own and joins the others
there, and each has its own windows of guidance and of reference attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.algorithm.branches import Branch, Denoiser, Prompt
from pipeline.algorithm.guidance import classifier_free
from pipeline.algorithm.masks import Mask, hold
from pipeline.algorithm.schedule import DenoisingStep, Schedule


@dataclass(frozen=True)
class EditPrompts:
    """The prompts of one edit's branches, and of the references that these attend to."""

    positive: Prompt
    negative: Prompt
    reference_positive: Prompt
    reference_negative: Prompt


@dataclass(frozen=True)
class Edited:
    """The latents of edits.

    Args:
        latents: [K, F, C, H, W], float32.
        largest_residual: the largest root mean square, over the steps, of what the reference's own
            step misses of the trajectory; None where no step computed it.
        masks: each edit's as it was used, in pixels, [F, H, W], float32, on the CPU; None for an
            edit without one.
    """

    latents: Tensor
    largest_residual: float | None
    masks: tuple[Tensor | None, ...] = ()


@torch.no_grad()
def reconstruct(
    model: Denoiser,
    x: Tensor,
    trajectory: Callable[[int], Tensor],
    edits: Sequence[EditPrompts],
    steps: Sequence[DenoisingStep],
    schedule: Schedule,
    *,
    empty: Prompt,
    residual: bool = False,
    blocks: tuple[int, int] | None = None,
    share: bool = True,
    masks: Sequence[Mask | None] = (),
    on_step: Callable[[int, Tensor], Tensor | None] | None = None,
) -> Edited:
    """Denoise edits of one video.

    Args:
        x: where each edit starts, [K, F, C, H, W], float32. One that starts further down than the
            first step waits there until its level comes.
        trajectory: the stored latent [F, C, H, W], float32, of a level.
        edits: K of them.
        steps: from the highest level down.
        empty: the prompt of the inversion.
        residual: add at each step what the reference's own step misses of the trajectory
            (DirectInversion, Ju et al., ICLR 2024).
        blocks, share: as of `Denoiser.predict`.
        masks: K of them, or none: outside of its mask an edit is the trajectory after each step.
        on_step: called with the level that a step reached and the latents [K, F, C, H, W]; what it
            returns, if anything, takes their place.
    """
    largest: Tensor | None = None  # on the device: the loop never waits for it
    for step in steps:
        reference = trajectory(step.level) if step.inject or residual else None
        now = before = taken(x, step)
        v, positive, own = guided_velocity(
            model, now, edits, step, schedule, reference, blocks, share
        )
        if residual and reference is not None and empty.text not in own:
            timestep = schedule.levels[step.level].timestep
            own[empty.text] = model.predict([Branch(reference, empty)], timestep)[0][0]
        now = schedule.descend(now, v, step.level)
        # Only the velocity of the inversion's own prompt leads along the trajectory.
        if reference is not None and empty.text in own:
            reached = schedule.descend(reference, own[empty.text], step.level)
            missed = trajectory(step.level - 1) - reached
            size = missed.square().mean().sqrt()
            largest = torch.fmax(torch.zeros_like(size) if largest is None else largest, size)
            if residual:
                now = now + missed
        if masks:
            moving = [masks[number] for number in step.moving]
            now = hold(moving, before, now, positive, trajectory, schedule, step.level)
        x = put_back(x, now, step)
        if on_step:
            replaced = on_step(step.level - 1, x)
            x = x if replaced is None else replaced
    return Edited(x, None if largest is None else largest.item())


def guided_velocity(
    model: Denoiser,
    now: Tensor,
    edits: Sequence[EditPrompts],
    step: DenoisingStep,
    schedule: Schedule,
    reference: Tensor | None,
    blocks: tuple[int, int] | None,
    share: bool,
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """The guided velocities of a step, as `now`, those of its edits' positive branches, and the
    reference's own by prompt.

    Args:
        now: of the edits that take the step, [M, F, C, H, W].
        edits: all K of them.
    """
    guided: dict[int, Tensor] = {}
    positive: dict[int, Tensor] = {}
    own: dict[str, Tensor] = {}
    latents = dict(zip(step.moving, now, strict=True))
    each = list(enumerate(zip(edits, step.scales, step.injects, strict=True)))
    for inject in (True, False):  # in a call every branch attends to a reference, or none does
        branches: list[Branch] = []
        scales: dict[int, float] = {}
        # One edit's two branches, then the next one's: a batch that is split keeps them together.
        for number, (edit, scale, injects) in each:
            if scale is None or injects is not inject:
                continue
            scales[number] = scale
            if scale > 1:
                seen = edit.reference_negative if inject else None
                branches.append(Branch(latents[number], edit.negative, seen, number, negative=True))
            seen = edit.reference_positive if inject else None
            branches.append(Branch(latents[number], edit.positive, seen, number))
        if not branches:
            continue
        velocities, of_references = model.predict(
            branches,
            schedule.levels[step.level].timestep,
            reference if inject else None,
            blocks=blocks,
            share=share,
        )
        own |= of_references
        answers = iter(velocities)
        for number, scale in scales.items():
            negative = next(answers) if scale > 1 else None
            positive[number] = v = next(answers)
            guided[number] = v if negative is None else classifier_free(negative, v, scale)
    return torch.stack([guided[n] for n in latents]), [positive[n] for n in latents], own


def taken(x: Tensor, step: DenoisingStep) -> Tensor:
    """Of something of each edit, [K, ...], that of the edits that take a step."""
    moving = step.moving
    return x if len(moving) == len(x) else torch.stack([x[number] for number in moving])


def put_back(x: Tensor, now: Tensor, step: DenoisingStep) -> Tensor:
    """The latents of all edits [K, F, C, H, W], those that took a step as `now`."""
    if len(now) == len(x):
        return now
    every = dict(enumerate(x)) | dict(zip(step.moving, now, strict=True))
    return torch.stack(list(every.values()))


def seeded_noise(shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal noise drawn on the CPU, so that every device starts from the same."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def mixed(x: Tensor, clean: Tensor, noise: Tensor, part: float, alpha: float) -> Tensor:
    """A latent of a trajectory with a part of its noise in the place of which other noise stands.

    The latent is sqrt(alpha) clean + sqrt(1 - alpha) eps, so the clean latent tells its eps. That
    becomes sqrt(1 - part^2) eps + part noise: of variance 1 as before where eps has it, and the
    signal stays whole, which a mix of the whole latent with noise would weaken.

    Args:
        x: the trajectory's entry at a level of this `alpha`, [F, C, H, W].
        clean: its entry at level 0.
        noise: of variance 1.
        part: 0 gives `x` back; 1 is a start from the clean latent and new noise alone.
    """
    own = x - math.sqrt(alpha) * clean
    return x + (math.sqrt(1 - part**2) - 1) * own + math.sqrt(1 - alpha) * part * noise
