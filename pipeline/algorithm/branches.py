"""What the algorithms ask of a model: the branches of a denoising step, and their velocities.

A branch is a latent with a prompt: an edit's negative or positive one, or the reference. All
branches of a call stand at the same noise level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

Velocity = Callable[[Tensor, int], Tensor]
"""A model as inversion sees it: (latents [F, C, H, W], timestep) -> velocity [F, C, H, W]."""


@dataclass(frozen=True)
class Prompt:
    """A text and its embedding [L, D]. Two prompts of the same text are the same prompt."""

    text: str
    embedding: Tensor = field(compare=False, repr=False)


@dataclass(frozen=True)
class Branch:
    """One forward that a denoising step needs.

    Args:
        latents: [F, C, H, W], float32.
        prompt: conditions it.
        reference: the prompt of the reference branch that it attends to; None for plain attention.
        edit: the number of its edit, the same in all steps; None for a branch of no edit.
        negative: whether it is its edit's negative branch.
    """

    latents: Tensor
    prompt: Prompt
    reference: Prompt | None = None
    edit: int | None = None
    negative: bool = False


class Denoiser(Protocol):
    """A model as reconstruction sees it."""

    def predict(
        self,
        branches: Sequence[Branch],
        timestep: int,
        reference: Tensor | None = None,
        *,
        blocks: tuple[int, int] | None = None,
        share: bool = True,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The velocities of all branches.

        Args:
            branches: at least one.
            timestep: the training timestep of their common level.
            reference: the source's latent at this level, [F, C, H, W], where branches attend to it.
            blocks: reference attention happens in the transformer blocks first <= i < last of
                these; None means all.
            share: compute reference branches of the same prompt once (exact); False computes one
                for each branch, as the public script does.

        Returns:
            The velocity of each branch, [F, C, H, W] float32, and the reference's own velocity by
            its prompt's text, where it was computed.
        """
