"""The results of what the row check refused: no group is asked for it."""

from __future__ import annotations

from datetime import UTC, datetime

from cluster.stages.blocks import EditWork, VideoWork
from pipeline.records import EditResult


def results_of_refused(video: VideoWork, run: str) -> list[EditResult]:
    """A result for each refused edit of a video; a refused video without edits has one, too."""
    edits = video.edits if video.error_code else [edit for edit in video.edits if not edit.pending]
    if video.error_code and not edits:
        edits = (EditWork(),)
    return [_result(video, edit, run) for edit in edits]


def _result(video: VideoWork, edit: EditWork, run: str) -> EditResult:
    failure = edit if edit.error_code else video
    return EditResult(
        video_id=video.video_id,
        edit_id=edit.edit_id,
        video=video.video,
        prompt=edit.prompt,
        source_prompt=video.source_prompt,
        status="failed",
        error_code=failure.error_code,
        error=failure.error,
        fingerprint=edit.fingerprint,
        run=run,
        finished_at=datetime.now(UTC),
    )
