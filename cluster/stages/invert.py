"""The inversion stage, and the fan-out after it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pyarrow as pa

from cluster.job import Job
from cluster.ranks.messages import InvertVideo
from cluster.stages.blocks import VideoWork, rebuilt, work_of
from cluster.stages.group import GivenBack, GroupStage


class InvertVideos(GroupStage):
    """Inverts each row's video once, or finds its trajectory stored."""

    name = "inversion"

    def __init__(self, *args: Any) -> None:
        super().__init__("edits", *args)

    def __call__(self, table: pa.Table) -> pa.Table:
        videos: list[VideoWork] = []
        origins: list[int] = []
        for origin, video in enumerate(work_of(table)):
            with suppress(GivenBack):
                if video.pending:
                    answer, tries = self.ask(inversion_of(video))
                    video = video.inverted(answer, tries)
                    if not answer.error_code:
                        self.report.happened("video inverted")
                videos.append(video)
                origins.append(origin)
        return rebuilt(table, videos, origins)


def inversion_of(video: VideoWork) -> InvertVideo:
    """What a group is asked for, to have a video's trajectory stored.

    Of the edits it need only know whether one has a mask: such a one may read more levels.
    """
    masks = (edit.mask for edit in video.edits if edit.pending)
    mask = next((mask for mask in masks if mask not in (None, "none")), None)
    return InvertVideo(replace(video.spec(), edits=(), mask=mask))


class FanOut:
    """One row for each unit of work: a video with at most K of its edits.

    A failed row goes on as one. Where trajectories are not kept, a video stays one unit: whoever
    made its last edit deletes it. Every unit has the number of its video's pending edits, of which
    each bears its share of the inversion.
    """

    def __init__(self, job: Job) -> None:
        self.whole = job.editing.trajectory.keep == "never"
        self.edits_a_unit = job.editing.reconstruction.edits_a_unit

    def __call__(self, table: pa.Table) -> pa.Table:
        units: list[VideoWork] = []
        origins: list[int] = []
        for origin, video in enumerate(work_of(table)):
            made = self._units(video)
            units.extend(made)
            origins.extend([origin] * len(made))
        return rebuilt(table, units, origins)

    def _units(self, video: VideoWork) -> list[VideoWork]:
        count = len(video.edits)
        step = max(1, count) if self.whole or video.error_code else self.edits_a_unit
        return [
            replace(video, edits=video.edits[first : first + step], pending_edits=count)
            for first in range(0, count, step)
        ]
