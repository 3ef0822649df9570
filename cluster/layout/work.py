"""Counted work: what a video costs in forwards of the transformer, and what that says of layouts.

Counted is what one rank computes; reading, the VAE and writing are left out, and run beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.model.footprint import forward_flops
from pipeline.plan import denoising_steps, edit_plans, highest_stored
from pipeline.records import EditSpec, Forwards
from pipeline.settings import EditingSettings, Reconstruction

if TYPE_CHECKING:
    from pipeline.model.checkpoint import CheckpointInfo

INJECTED = 1.49
"""What a forward with reference attention costs, in plain ones, where the checkpoint is not known:
that of 5b where a video has 17,550 tokens."""


@dataclass(frozen=True)
class Amount:
    """How much a run is going to do.

    Args:
        videos: with pending edits.
        edits: that are pending.
    """

    videos: int
    edits: int

    @property
    def edits_a_video(self) -> int:
        """The mean, rounded up."""
        return max(1, math.ceil(self.edits / max(1, self.videos)))

    def units(self, settings: EditingSettings) -> int:
        """Pieces of work for a pool that only reconstructs."""
        if settings.trajectory.keep == "never":
            return self.videos  # whoever made the last edit of a video deletes it
        return self.videos * math.ceil(self.edits_a_video / settings.reconstruction.edits_a_unit)


def injected_cost(
    settings: EditingSettings, info: CheckpointInfo, frames: int, height: int, width: int
) -> float:
    """What a forward with reference attention costs with a checkpoint, in plain ones.

    Args:
        frames, height, width: of the clip, in pixels.
    """
    blocks = settings.reconstruction.inject_blocks
    plain = forward_flops(info, frames, height, width)
    return forward_flops(info, frames, height, width, injected=True, blocks=blocks) / plain


def inversion_forwards(settings: EditingSettings) -> int:
    """Forwards of one video's inversion, all plain, with what certifies it."""
    inversion = settings.inversion
    top = highest_stored(settings.reconstruction, inversion.steps)
    return inversion.evaluations(top) + inversion.round_trip * top


def reconstruction_forwards(settings: EditingSettings, edits: int) -> Forwards:
    """Forwards of so many edits of one video in lockstep, each with all its candidates.

    Each has the job's guidance scale and a prompt of its own, on one cfg rank.
    """
    how = settings.reconstruction
    plain = injected = 0
    for step in unit_steps(how, settings.inversion.steps, edits):
        plain += step.references + step.plain
        injected += step.attending
        plain += how.residual and not _follows_inversion(how, step.guided, step.attending > 0)
    return Forwards(plain=plain, injected=injected)


@dataclass(frozen=True)
class StepWork:
    """What a denoising step of edits in lockstep asks of the model.

    Args:
        attending, plain: branches with reference attention, and those without, each in one forward.
        references: that the former attend to.
        guided: whether one of the former is a negative branch.
    """

    attending: int
    plain: int
    references: int
    guided: bool


def unit_steps(how: Reconstruction, steps: int, edits: int) -> list[StepWork]:
    """The steps of so many edits in lockstep, each with all its candidates and its own prompt.

    Args:
        steps: T, the steps of the whole schedule.
    """
    plans = edit_plans(how, [how.filled(EditSpec(f"{number}"), 0) for number in range(edits)])
    scales = [float(plan.edit.guidance_scale or 0) for plan in plans]
    found = []
    for step in denoising_steps([plan.settings for plan in plans], steps, scales):
        moving = [(plans[n].source, step.scales[n] or 0, step.injects[n]) for n in step.moving]
        seeing = [(source, scale > 1) for source, scale, injects in moving if injects]
        guided = sum(has for _, has in seeing)
        branches = len(moving) + sum(scale > 1 for _, scale, _ in moving)
        attending = len(seeing) + guided
        found.append(
            StepWork(
                attending=attending,
                plain=branches - attending,
                references=_references(
                    how, attending, len({source for source, _ in seeing}), guided
                ),
                guided=guided > 0,
            )
        )
    return found


def _references(how: Reconstruction, branches: int, prompts: int, guided: int) -> int:
    """Reference branches of a step: those of the same prompt are one.

    Args:
        branches: that attend.
        prompts: different ones of the edits that attend.
        guided: how many of these have guidance at this step.
    """
    if not branches:
        return 0
    described = {"empty": 1, "source": 1, "shared": prompts + bool(guided)}
    return described.get(how.reference, branches)


def _follows_inversion(how: Reconstruction, guided: bool, inject: bool) -> bool:
    """Whether a reference branch of a step has the empty prompt, which the residual asks for."""
    negative = guided and not how.negative_prompt and how.reference in ("shared", "script")
    return inject and (how.reference == "empty" or negative)


@dataclass(frozen=True)
class Work:
    """What a video costs, in plain forwards.

    Args:
        inversion: of one video.
        units: of its edits, K at a time, in their order.
    """

    inversion: float
    units: tuple[float, ...]

    @classmethod
    def of(cls, settings: EditingSettings, edits: int, injected: float = INJECTED) -> Work:
        """The work of a video with so many edits.

        Args:
            injected: what a forward with reference attention costs, in plain ones.
        """
        at_once = settings.reconstruction.edits_a_unit
        whole, rest = divmod(edits, at_once)
        sizes = [at_once] * whole + [rest] * bool(rest)
        costs = {
            size: _cost(reconstruction_forwards(settings, size), injected) for size in set(sizes)
        }
        return cls(float(inversion_forwards(settings)), tuple(costs[size] for size in sizes))

    @property
    def editing(self) -> float:
        return sum(self.units)

    @property
    def total(self) -> float:
        return self.inversion + self.editing


def _cost(forwards: Forwards, injected: float) -> float:
    return forwards.plain + injected * forwards.injected


def shared_duration(work: Work, videos: int, groups: int) -> float:
    """How long groups take that make all of a video each."""
    return math.ceil(videos / groups) * work.total


def split_duration(
    work: Work, videos: int, inverting: int, editing: int, *, whole: bool = False
) -> float:
    """How long an inversion pool and a reconstruction pool take, within some percent.

    Either the inversions take longer, and the edits of the last ones are left at their end; or the
    reconstruction pool has always work once the first video is inverted.

    Args:
        whole: a video stays one unit of work.
    """
    units = (work.editing,) if whole else work.units
    waves = math.ceil(videos / inverting)
    last = videos - (waves - 1) * inverting
    left = math.ceil(last * len(units) / editing) * max(units)
    edits = max(math.ceil(videos * len(units) / editing) * sum(units) / len(units), *units)
    return work.inversion + max((waves - 1) * work.inversion + left, edits)
