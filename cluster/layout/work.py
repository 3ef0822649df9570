"""Counted work: what a video costs in forwards of the transformer, and what that says of layouts.

Counted is what one rank computes; reading, the VAE and writing are left out, and run beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.model.footprint import forward_flops
from pipeline.plan import denoising_steps, highest_stored
from pipeline.records import Forwards
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
        return self.videos * math.ceil(self.edits_a_video / settings.reconstruction.edits_at_once)


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
    """Forwards of so many edits of one video in lockstep.

    Each has the job's guidance scale and a prompt of its own, on one cfg rank.
    """
    how = settings.reconstruction
    plain = injected = 0
    for step in denoising_steps(how, settings.inversion.steps, [how.guidance_scale] * edits):
        guided = sum(scale > 1 for scale in step.scales)
        branches = edits + guided
        if step.inject:
            injected += branches
            plain += references(how, edits, guided)
        else:
            plain += branches
        plain += how.residual and not _follows_inversion(how, bool(guided), step.inject)
    return Forwards(plain=plain, injected=injected)


def references(how: Reconstruction, edits: int, guided: int) -> int:
    """Reference branches of a step: those of the same prompt are one.

    Args:
        edits: in lockstep, each with a prompt of its own.
        guided: how many of them have guidance at this step.
    """
    described = {"empty": 1, "source": 1, "shared": edits + bool(guided)}
    return described.get(how.reference, edits + guided)


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
        at_once = settings.reconstruction.edits_at_once
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
