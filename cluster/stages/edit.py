"""The stages that make edits, and turn every row into its results.

`EditVideos` does all of a video, in the shared layout. In the split layout `ReconstructEdits` makes
the edits of a unit, whose video another stage inverted. The results are the same.
"""

from __future__ import annotations

import traceback
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar

import pyarrow as pa

from cluster.ranks.messages import Answer, EditVideo
from cluster.results.schema import SCHEMA
from cluster.stages.blocks import EditWork, VideoWork, rebuilt, work_of
from cluster.stages.group import GivenBack, GroupStage
from cluster.stages.invert import inversion_of
from pipeline.errors import ErrorCode
from pipeline.records import EditResult, Timings, from_dict
from pipeline.storage import Folder

QUARANTINED = (ErrorCode.RANK_DIED, ErrorCode.DEADLINE)


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
                made += self._refused(video)
                for unit in self._units(video):
                    assert unit.inversion_result is not None
                    answer, tries = self.ask(EditVideo(unit.spec(), unit.inversion_result))
                    made += self._answered(unit, answer, tries)
                self._forget(video, made)
            results.extend(made)
            origins.extend([origin] * len(made))
        return rebuilt(table, results, origins, SCHEMA)

    def _inverted(self, video: VideoWork, answer: Answer, tries: int) -> VideoWork:
        if not answer.error_code:
            self.report.happened("video inverted")
        pending = sum(edit.pending for edit in video.edits)
        return replace(video.inverted(answer, tries), pending_edits=pending)

    def _units(self, video: VideoWork) -> list[VideoWork]:
        """A video's pending edits, K at a time."""
        step = self.job.editing.reconstruction.edits_at_once
        pending = [edit for edit in video.edits if edit.pending and not video.error_code]
        parts = [pending[first : first + step] for first in range(0, len(pending), step)]
        return [replace(video, edits=tuple(part)) for part in parts]

    def _answered(self, unit: VideoWork, answer: Answer, tries: int) -> list[EditResult]:
        """The results of edits that a group was asked for."""
        unit = replace(unit, attempts=max(tries, unit.attempts))
        failure = EditResult(error_code=answer.error_code, error=answer.error)
        known = [from_dict(EditResult, made) for made in answer.result or ()]
        known = known or [failure] * len(unit.edits)
        own_s = answer.seconds / len(unit.edits)
        return [
            self._result(unit, edit, one, own_s)
            for edit, one in zip(unit.edits, known, strict=True)
        ]

    def _refused(self, video: VideoWork) -> list[EditResult]:
        """The results of what no group was asked for."""
        if not video.error_code:
            edits = [edit for edit in video.edits if not edit.pending]
        else:
            edits = list(video.edits) or [EditWork()]
        failures = [edit if edit.error_code else video for edit in edits]
        return [
            self._result(
                video, edit, EditResult(error_code=failure.error_code, error=failure.error)
            )
            for edit, failure in zip(edits, failures, strict=True)
        ]

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
                traceback.print_exception(error)

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
        if video.inversion_seconds and edit.pending:
            inverting = self.settings if self.inverts else self.job.cluster.inversion
            gpu_seconds += video.inversion_seconds / video.pending_edits * inverting.gpus
        result = replace(
            known,
            **{name: getattr(video, name) for name in ("video_id", "video", "source_prompt")},
            **{name: getattr(edit, name) for name in ("edit_id", "prompt", "fingerprint")},
            status=_status(known.error_code),
            attempts=video.attempts,
            run=self.job.run,
            gpu_seconds=gpu_seconds if self.device == "gpu" else 0.0,
            finished_at=datetime.now(UTC),
        )
        if inversion is None:
            return result
        share = inversion.timings.shared(video.pending_edits) if edit.pending else Timings()
        forwards = inversion.forwards / video.pending_edits if edit.pending else 0.0
        return replace(
            result,
            **{
                name: getattr(inversion, name)
                for name in ("trajectory", "source", "frames", "height", "width", "fps")
            },
            trajectory_damage=known.trajectory_damage or inversion.trajectory_damage,
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


def _status(code: ErrorCode | None) -> str:
    if code is None:
        return "ok"
    return "quarantined" if code in QUARANTINED else "failed"
