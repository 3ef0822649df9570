"""A cache from step to step: where an edit hardly changes, most of its forward is skipped.

From one denoising step to the next the velocity of an edit often changes little. The first block
tells how much: its residual (what it adds to the video tokens) is compared with that of the last
step that was computed whole. Where the relative L1 difference is below a threshold, the blocks
after it are skipped, and what they added then is added again. The comparison is that of
ParaAttention's First Block Cache (github.com/chengzeyi/ParaAttention), which follows TeaCache (Liu
et al., "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model", CVPR 2025).

Each edit decides for itself, so that it does not depend on those beside it, and for both of its
branches together: guidance multiplies their difference, in which the errors of two velocities of
the same earlier step cancel, while those of a new one and an old one do not. A step in which
guidance or reference attention begins or ends is never skipped (`pipeline.plan.skippable`): the
branches of an edit are others then, and on two cfg ranks lie elsewhere. Edits need not be alike:
each has its own steps that may be skipped, and where some attend to the reference in a step and
others do not, which takes two forwards, each forward has a cache of its own.

A `StepCache` belongs to the edits of one reconstruction: nothing goes from one video to the next.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.algorithm.branches import Branch, Denoiser
from pipeline.algorithm.schedule import Schedule
from pipeline.model.group import TokenGroup
from pipeline.model.transformer.batch import Part, keep_rows, needed_places

if TYPE_CHECKING:
    from pipeline.model.transformer.velocity import VelocityModel

Name = tuple[int | None, bool]
"""An edit's number, and whether it is the edit's negative branch."""
Sizes = tuple[float, float]
"""Sums of |a - b| and of |b|."""


def name_of(branch: Branch) -> Name:
    return branch.edit, branch.negative


@dataclass(frozen=True)
class Residuals:
    """What a branch added to its video tokens [N, D] in the last step that was computed whole.

    Args:
        first: in the first block.
        rest: in all others.
    """

    first: Tensor
    rest: Tensor


@dataclass
class StepCache:
    """What the edits of one reconstruction keep from step to step.

    Args:
        threshold: edits whose first block differs by less than this part are skipped.
        timesteps: of the steps that edits may skip.
        of_edit: those that each edit may skip, by its number; all of them where it is not there.
    """

    threshold: float
    timesteps: frozenset[int]
    of_edit: Mapping[int | None, frozenset[int]] = field(default_factory=dict, repr=False)
    residuals: dict[Name, Residuals] = field(default_factory=dict, repr=False)

    def works_for(self, branches: Sequence[Branch], timestep: int) -> bool:
        """Whether a step may skip some of these branches, or keeps what a later one needs."""
        some = any(branch.edit is not None for branch in branches)
        return some and (self.may_skip(timestep) or self.keeps(timestep))

    def may_skip(self, timestep: int) -> bool:
        return timestep in self.timesteps

    def keeps(self, timestep: int) -> bool:
        """Whether a later step may be skipped. Timesteps fall along the denoising steps."""
        return any(later < timestep for later in self.timesteps)

    def skipped(
        self,
        branches: Sequence[Branch],
        sizes: Sequence[tuple[float, float]],
        timestep: int | None = None,
    ) -> list[bool]:
        """Which of all branches to skip: both of an edit's or none.

        Args:
            timestep: of the step, where edits differ in those that they may skip.
            sizes: for each branch, the sum of |a - b| and that of |b|, where a is what the first
                block added now and b what it added in the last computed step.
        """
        near = [change < self.threshold * size for change, size in sizes]
        far = {branch.edit for branch, is_near in zip(branches, near, strict=True) if not is_near}
        far |= {edit for edit, steps in self.of_edit.items() if timestep not in steps}
        return [branch.edit is not None and branch.edit not in far for branch in branches]


@dataclass(frozen=True)
class StepCached:
    """A model whose edits may skip steps: a `pipeline.algorithm.branches.Denoiser`.

    Args:
        attending, plain: of the one reconstruction that this serves: what branches with reference
            attention keep, and what those without.
    """

    model: VelocityModel
    attending: StepCache
    plain: StepCache

    def predict(
        self,
        branches: Sequence[Branch],
        timestep: int,
        reference: Tensor | None = None,
        *,
        blocks: tuple[int, int] | None = None,
        share: bool = True,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """As the model's. The velocity of a reference that no edit needed is not there."""
        cache, other = self.plain, self.attending
        if reference is not None:
            cache, other = other, cache
        for branch in branches:  # what it kept before its attention changed is too old to compare
            other.residuals.pop(name_of(branch), None)
        return self.model.predict(
            branches, timestep, reference, blocks=blocks, share=share, cache=cache
        )


def with_step_cache(
    model: VelocityModel, schedule: Schedule, levels: Sequence[Collection[int]]
) -> Denoiser:
    """The model for one reconstruction, with an empty cache where its settings ask for one.

    Args:
        levels: for each edit, whose steps down it may skip.
    """
    threshold = model.speed.step_cache
    if not threshold or not any(levels):
        return model
    of_edit: dict[int | None, frozenset[int]] = {
        edit: frozenset(schedule.levels[level].timestep for level in own)
        for edit, own in enumerate(levels)
    }
    timesteps = frozenset[int]().union(*of_edit.values())
    return StepCached(
        model, StepCache(threshold, timesteps, of_edit), StepCache(threshold, timesteps, of_edit)
    )


@dataclass
class CachedStep:
    """One forward of a rank's branches, whose edits may be skipped after the first block.

    Args:
        group: the ranks that compute together; all of them come to the same decisions.
        shares: the branches of each cfg rank. In a batch they stand ahead of their references.
        share: as of `Denoiser.predict`.

    Attributes:
        computed: for each of the branches, whether it goes through all blocks.
    """

    cache: StepCache
    group: TokenGroup
    shares: Sequence[Sequence[Branch]]
    timestep: int
    share: bool

    def __post_init__(self) -> None:
        self.computed = [[True] * len(branches) for branches in self.shares]
        self._number = self.group.cfg_rank % len(self.shares)
        self._own = self.shares[self._number]
        self._begun: dict[int, tuple[Tensor, Tensor]] = {}
        self._skipped: list[Part] = []
        # What lies with another rank now is too old where it comes back.
        names = set(map(name_of, self._own))
        for gone in self.cache.residuals.keys() - names:
            del self.cache.residuals[gone]

    def after_first(
        self, parts: list[Part], entered: list[Tensor], video_tokens: int
    ) -> list[Part]:
        """The parts that go on to the second block.

        Args:
            parts: as they left the first block.
            entered: the video tokens [rows, N, D] of each part as they entered it. The list is
                emptied.
            video_tokens: of one branch, on all ranks, without padding.
        """
        added = self._added(parts, entered)
        if self.cache.may_skip(self.timestep):
            self._decide(added, video_tokens)
        for part in parts:
            for place, row in enumerate(part.rows):
                if row in added:
                    self._skip_or_begin(row, added[row], part, place)
        computed, count = self.computed[self._number], len(self._own)
        rows = [row for row in range(count) if computed[row]]
        needed = [count + place for place in needed_places(self._own, computed, self.share)]
        return keep_rows(parts, rows + needed, count)

    def finish(self, parts: list[Part]) -> list[Part]:
        """All parts behind the last block: those that went through it, and the skipped ones."""
        for part in parts:
            for place, row in enumerate(part.rows):
                if row in self._begun:
                    first, after = self._begun.pop(row)
                    found = Residuals(first, part.video[place] - after)
                    self.cache.residuals[name_of(self._own[row])] = found
        if not self.cache.keeps(self.timestep):
            self.cache.residuals.clear()
        return [*parts, *self._skipped]

    def _added(self, parts: list[Part], entered: list[Tensor]) -> dict[int, Tensor]:
        """What the first block added to each edit's video tokens [N, D], by row."""
        added: dict[int, Tensor] = {}
        for part in parts:
            before = entered.pop(0)
            for place, row in enumerate(part.rows):
                if row < len(self._own) and self._own[row].edit is not None:
                    added[row] = part.video[place] - before[place]
        return added

    def _decide(self, added: dict[int, Tensor], video_tokens: int) -> None:
        """Agree on what is skipped. The one place where the host waits for the device."""
        every = [branch for branches in self.shares for branch in branches]
        ahead = sum(map(len, self.shares[: self._number]))
        real = int(self.group.split(torch.ones(1, video_tokens, 1)).sum())  # the rest is padding
        device = next(iter(added.values())).device
        sums = torch.zeros((len(every), 2), device=device)
        for row, now in added.items():
            known = self.cache.residuals.get(name_of(self._own[row]))
            if known is None:
                sums[ahead + row, 0] = torch.inf
                continue
            # Each row by itself, so that its sums do not depend on those beside it.
            before = known.first[:real]
            change = (now[:real] - before).abs().sum(dtype=torch.float32)
            size = before.abs().sum(dtype=torch.float32)
            sums[ahead + row] = torch.stack([change, size])
        counts = [sums.numel()] * self.group.ranks
        values = self.group.gather_values(sums.flatten(), counts).cpu().tolist()
        # A branch that several ranks compute counts as often in both of its sums.
        totals = [sum(values[place :: sums.numel()]) for place in range(sums.numel())]
        sizes = list(zip(totals[::2], totals[1::2], strict=True))
        computed = [not skipped for skipped in self.cache.skipped(every, sizes, self.timestep)]
        for share in self.computed:
            share[:], computed = computed[: len(share)], computed[len(share) :]

    def _skip_or_begin(self, row: int, added: Tensor, part: Part, place: int) -> None:
        """Finish a skipped row, or remember what the rest of a computed one is measured from."""
        branch, video = self._own[row], part.video[place]
        name = name_of(branch)
        if not self.computed[self._number][row]:
            whole = video + self.cache.residuals[name].rest
            self._skipped.append(Part([row], whole[None], part.text[place : place + 1], []))
            return
        # Where memory runs out in a later block, the next try finds nothing and computes.
        self.cache.residuals.pop(name, None)
        if self.cache.keeps(self.timestep):
            self._begun[row] = added, video
