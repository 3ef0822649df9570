"""Reconstruction: many edits of one video, denoised level by level in lockstep.

Every step predicts, for each edit, a negative and a positive velocity (classifier-free guidance),
both attending to the reference: a forward of the stored latent at the same level. Edits of one
video share that reference, so K edits cost 1 + 3K forwards a step where the reference carries the
edit's own prompts, 1 + 2K where it carries the empty prompt, and 2K outside of the window of
reference attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.algorithm.branches import Branch, Denoiser, Prompt
from pipeline.algorithm.guidance import classifier_free
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
    """

    latents: Tensor
    largest_residual: float | None


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
    on_step: Callable[[int, Tensor], Tensor | None] | None = None,
) -> Edited:
    """Denoise edits of one video.

    Args:
        x: where each edit starts, [K, F, C, H, W], float32.
        trajectory: the stored latent [F, C, H, W], float32, of a level.
        edits: K of them.
        steps: from the highest level down.
        empty: the prompt of the inversion.
        residual: add at each step what the reference's own step misses of the trajectory
            (DirectInversion, Ju et al., ICLR 2024).
        blocks, share: as of `Denoiser.predict`.
        on_step: called with the level that a step reached and the latents [K, F, C, H, W]; what it
            returns, if anything, takes their place.
    """
    largest: Tensor | None = None  # on the device: the loop never waits for it
    for step in steps:
        reference = trajectory(step.level) if step.inject or residual else None
        v, own = guided_velocity(model, x, edits, step, schedule, reference, blocks, share)
        if residual and reference is not None and empty.text not in own:
            timestep = schedule.levels[step.level].timestep
            own[empty.text] = model.predict([Branch(reference, empty)], timestep)[0][0]
        x = schedule.descend(x, v, step.level)
        # Only the velocity of the inversion's own prompt leads along the trajectory.
        if reference is not None and empty.text in own:
            reached = schedule.descend(reference, own[empty.text], step.level)
            missed = trajectory(step.level - 1) - reached
            size = missed.square().mean().sqrt()
            largest = torch.fmax(torch.zeros_like(size) if largest is None else largest, size)
            if residual:
                x = x + missed
        if on_step:
            replaced = on_step(step.level - 1, x)
            x = x if replaced is None else replaced
    return Edited(x, None if largest is None else largest.item())


def guided_velocity(
    model: Denoiser,
    x: Tensor,
    edits: Sequence[EditPrompts],
    step: DenoisingStep,
    schedule: Schedule,
    reference: Tensor | None,
    blocks: tuple[int, int] | None,
    share: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The guided velocities [K, F, C, H, W] of a step, and the reference's own by prompt."""
    branches: list[Branch] = []
    # One edit's two branches, then the next one's: a batch that is split keeps them together.
    for number, (latents, edit, scale) in enumerate(zip(x, edits, step.scales, strict=True)):
        if scale > 1:
            seen = edit.reference_negative if step.inject else None
            branches.append(Branch(latents, edit.negative, seen, number, negative=True))
        seen = edit.reference_positive if step.inject else None
        branches.append(Branch(latents, edit.positive, seen, number))
    velocities, own = model.predict(
        branches,
        schedule.levels[step.level].timestep,
        reference if step.inject else None,
        blocks=blocks,
        share=share,
    )
    answers = iter(velocities)
    guided = [
        classifier_free(next(answers), next(answers), scale) if scale > 1 else next(answers)
        for scale in step.scales
    ]
    return torch.stack(guided), own


def seeded_noise(shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal noise drawn on the CPU, so that every device starts from the same."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))
