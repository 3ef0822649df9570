"""The stages that make edits, and turn every row into its results.

`EditVideos` does all of a video, in the shared layout. In the split layout `ReconstructEdits` makes
the edits of a unit, whose video another stage inverted. The results are the same.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

import pyarrow as pa

from cluster.candidates.made import gathered
from cluster.ranks.messages import Answer, EditVideo
from cluster.results.schema import SCHEMA
from cluster.stages.blocks import EditWork, VideoWork, rebuilt, result_of, work_of
from cluster.stages.group import GivenBack, GroupStage
from cluster.stages.invert import inversion_of
from cluster.stages.noted import note_results
from pipeline.records import EditResult, from_dict
from pipeline.redaction import log_error
from pipeline.storage import Folder


class EditStage(GroupStage):
    """A stage that ends in result rows."""

    inverts: ClassVar[bool]
    """Whether its groups invert the videos, too."""

    def __init__(self, *args: Any) -> None:
        super().__init__("edits", *args)

    def __call__(self, table: pa.Table) -> pa.Table:
        results: list[EditResult] = []
        origins: list[int] = []
        for origin, video in enumerate(work_of(table)):
            made: list[EditResult] = []
            with suppress(GivenBack):  # what was made so far has its results
                if self.inverts and video.pending:
                    video = self._inverted(video, *self.ask(inversion_of(video)))
                made += self._failed(video) if video.error_code else []
                for unit in self._units(video):
                    answer, tries = self.ask(self._request(unit))
                    made += self._answered(unit, answer, tries)
                self._forget(video, made)
            note_results(self.note, made)
            self.note.hurry()  # with the last block of a wave Ray ends this process
            results.extend(made)
            origins.extend([origin] * len(made))
        return rebuilt(table, results, origins, SCHEMA)

    def _inverted(self, video: VideoWork, answer: Answer, tries: int) -> VideoWork:
        if not answer.error_code:
            self.report.happened("video inverted")
        return replace(video.inverted(answer, tries), pending_edits=len(video.edits))

    def _units(self, video: VideoWork) -> list[VideoWork]:
        """A video's edits, K at a time."""
        step = self.job.editing.reconstruction.edits_a_unit
        edits = () if video.error_code else video.edits
        parts = [edits[first : first + step] for first in range(0, len(edits), step)]
        return [replace(video, edits=part) for part in parts]

    def _request(self, unit: VideoWork) -> EditVideo:
        assert unit.inversion_result is not None
        return EditVideo(unit.spec(), unit.inversion_result, self.job.round)

    def _answered(self, unit: VideoWork, answer: Answer, tries: int) -> list[EditResult]:
        """The results of edits that a group was asked for."""
        unit = replace(unit, attempts=max(tries, unit.attempts))
        failure = EditResult(error_code=answer.error_code, error=answer.error)
        made = [from_dict(EditResult, one) for one in answer.result or ()]
        known = gathered(made, self.job.editing.reconstruction)
        known = known or [failure] * len(unit.edits)
        own_s = answer.seconds / len(unit.edits)
        return [
            self._result(unit, edit, one, own_s)
            for edit, one in zip(unit.edits, known, strict=True)
        ]

    def _failed(self, video: VideoWork) -> list[EditResult]:
        """The results of a video that no edit can be made of."""
        failure = EditResult(error_code=video.error_code, error=video.error)
        return [self._result(video, edit, failure) for edit in video.edits]

    def _forget(self, video: VideoWork, made: list[EditResult]) -> None:
        """Delete a trajectory that is not kept, once all edits of its video are done."""
        never = self.job.editing.trajectory.keep == "never"
        if (
            never
            and video.inversion_result
            and video.pending
            and not video.left_pending
            and all(r.status == "ok" for r in made)
        ):
            folder = f"trajectories/{video.inversion_result.trajectory}"
            try:
                Folder(self.job.editing.output).remove_folder(folder)
            except Exception as error:  # the edits are made: a file that stays costs none of them
                log_error(error)

    def _result(
        self, video: VideoWork, edit: EditWork, known: EditResult, own_s: float = 0.0
    ) -> EditResult:
        """The whole row of one edit.

        Args:
            known: what the rank knows of it, or what went wrong.
            own_s: its share of the seconds that its unit held this group.
        """
        inversion = video.inversion_result
        gpu_seconds = own_s * self.settings.gpus
        if video.inversion_seconds:
            inverting = self.settings if self.inverts else self.job.cluster.inversion
            gpu_seconds += video.inversion_seconds / video.pending_edits * inverting.gpus
        result = replace(
            result_of(video, edit, known, self.job.run),
            attempts=video.attempts,
            gpu_seconds=gpu_seconds if self.device == "gpu" else 0.0,
        )
        if inversion is None:
            return result
        share = inversion.timings.shared(video.pending_edits)
        forwards = inversion.forwards / video.pending_edits
        return replace(
            result,
            **{
                name: getattr(inversion, name)
                for name in ("trajectory", "source", "frames", "height", "width", "fps")
            },
            trajectory_damage=known.trajectory_damage or inversion.trajectory_damage,
            trajectory_bytes=inversion.stored_bytes // video.pending_edits,
            forwards=replace(known.forwards, inversion=forwards),
            timings=share + known.timings,
        )


class EditVideos(EditStage):
    """Inverts each row's video, or finds its trajectory stored, and makes its edits."""

    name = "editing"
    inverts = True


class ReconstructEdits(EditStage):
    """Makes the edits of a unit of work."""

    name = "reconstruction"
    inverts = False
