"""The results of what the row check refused: no group is asked for it."""

from __future__ import annotations

from cluster.stages.blocks import EditWork, VideoWork, result_of
from pipeline.records import EditResult


def results_of_refused(video: VideoWork, run: str) -> list[EditResult]:
    """A result for each refused edit of a video; a refused video without edits has one, too."""
    edits = video.edits if video.error_code else [edit for edit in video.edits if not edit.pending]
    if video.error_code and not edits:
        edits = (EditWork(),)
    causes = [edit if edit.error_code else video for edit in edits]
    return [
        result_of(video, edit, EditResult(error_code=cause.error_code, error=cause.error), run)
        for edit, cause in zip(edits, causes, strict=True)
    ]
