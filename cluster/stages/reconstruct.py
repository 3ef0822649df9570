"""The last stage: the edits of a unit made, and every row turned into its results."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from cluster.ranks.messages import EditVideo
from cluster.results.schema import SCHEMA
from cluster.stages.blocks import EditWork, VideoWork, rebuilt, work_of
from cluster.stages.group import GroupStage
from pipeline.errors import ErrorCode
from pipeline.records import EditResult, Timings, from_dict
from pipeline.storage import Folder

QUARANTINED = (ErrorCode.RANK_DIED, ErrorCode.DEADLINE)


class ReconstructEdits(GroupStage):
    """Makes the edits of a unit, and turns every row into its results."""

    name = "reconstruction"

    def __init__(self, *args: Any) -> None:
        super().__init__("edits", *args)

    def __call__(self, table: pa.Table) -> pa.Table:
        results: list[EditResult] = []
        origins: list[int] = []
        for origin, video in enumerate(work_of(table)):
            made = self._refused(video)
            step = self.job.editing.reconstruction.edits_at_once
            pending = [edit for edit in video.edits if edit.pending and not video.error_code]
            for first in range(0, len(pending), step):
                unit = replace(video, edits=tuple(pending[first : first + step]))
                inversion = unit.inversion_result
                assert inversion is not None
                answer, tries = self.ask(EditVideo(unit.spec(), inversion))
                unit = replace(unit, attempts=max(tries, unit.attempts))
                failure = EditResult(error_code=answer.error_code, error=answer.error)
                known = [from_dict(EditResult, made) for made in answer.result or ()]
                known = known or [failure] * len(unit.edits)
                made += [
                    self._result(unit, edit, one)
                    for edit, one in zip(unit.edits, known, strict=True)
                ]
            self._forget(video, made)
            results.extend(made)
            origins.extend([origin] * len(made))
        return rebuilt(table, results, origins, SCHEMA)

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
            Folder(self.job.editing.output).remove_folder(folder)

    def _result(self, video: VideoWork, edit: EditWork, known: EditResult) -> EditResult:
        """The whole row of one edit.

        Args:
            known: what the rank knows of it, or what went wrong.
        """
        inversion = video.inversion_result
        result = replace(
            known,
            **{name: getattr(video, name) for name in ("video_id", "video", "source_prompt")},
            **{name: getattr(edit, name) for name in ("edit_id", "prompt", "fingerprint")},
            status=_status(known.error_code),
            attempts=video.attempts,
            run=self.job.run,
            finished_at=datetime.now(UTC),
        )
        own_s = known.timings.total * self.settings.gpus
        if inversion is None:
            return replace(result, gpu_seconds=own_s if self.device == "gpu" else 0.0)
        share = inversion.timings.shared(video.pending_edits) if edit.pending else Timings()
        forwards = inversion.forwards / video.pending_edits if edit.pending else 0.0
        inversion_s = share.total * self.job.cluster.inversion.gpus
        return replace(
            result,
            **{
                name: getattr(inversion, name)
                for name in ("trajectory", "source", "frames", "height", "width", "fps")
            },
            trajectory_damage=known.trajectory_damage or inversion.trajectory_damage,
            forwards=replace(known.forwards, inversion=forwards),
            timings=share + known.timings,
            gpu_seconds=inversion_s + own_s if self.device == "gpu" else 0.0,
        )


def _status(code: ErrorCode | None) -> str:
    if code is None:
        return "ok"
    return "quarantined" if code in QUARANTINED else "failed"
