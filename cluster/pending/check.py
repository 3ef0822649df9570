"""The row check: what of a manifest row is to be done, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.job import Job
from cluster.rows import EditFailure, check_row, default_id_of, default_video_id
from cluster.stages.blocks import EditWork, VideoWork
from pipeline.errors import ErrorCode, RowError
from pipeline.records import EditSpec, VideoSpec

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RowCheck:
    """Checks ids, prompts and numbers of manifest rows, and leaves out edits that are done.

    It opens no file, and what it says of a row depends on that row alone.

    Args:
        fingerprint: of the job.
    """

    job: Job
    fingerprint: str

    @classmethod
    def of(cls, job: Job) -> RowCheck:
        return cls(job, job.fingerprint())

    def work(
        self, row: Row, *, repeated: bool = False, done: Collection[str] = (), quarantined: int = 0
    ) -> VideoWork | None:
        """What is to be done for a row; None where all of it is done.

        Args:
            repeated: whether a row before it has the same `video_id`.
            done: the ids of the edits to leave out.
            quarantined: how many of these still need the video's trajectory.
        """
        try:
            checked = check_row(row, base=self.job.base)
            if repeated:
                raise _repeated(str(checked.video.video_id))
        except RowError as error:
            return _refused(row, error)
        video = checked.video
        edits = [self._pending(video, e) for e in video.edits if e.edit_id not in done]
        edits += [_refused_edit(failure) for failure in checked.failures]
        if not edits:
            return None
        # asdict would copy the edits
        return VideoWork(**vars(video) | {"edits": tuple(edits)}, left_pending=quarantined)

    def _pending(self, video: VideoSpec, edit: EditSpec) -> EditWork:
        if edit.mask == "auto":
            try:
                self.job.editing.reconstruction.check_auto_mask()
            except ValueError as error:
                values = {**vars(edit), "error_code": ErrorCode.BAD_MASK, "error": str(error)}
                return EditWork(**values)
        fingerprint = self.job.edit_fingerprint(self.fingerprint, video, edit)
        return EditWork(**vars(edit), fingerprint=fingerprint)


def _repeated(video_id: str) -> RowError:
    return RowError(
        ErrorCode.DUPLICATE_VIDEO_ID,
        f"video_id {video_id!r} stands in another row of the manifest too; only the "
        "first row with it is taken. Give every row its own video_id",
    )


def _refused(row: Row, error: RowError) -> VideoWork:
    """A row that nothing can be made from; its results need names."""
    return VideoWork(
        video_id=_id_as_given(row),
        video=_as_text(row.get("video")),
        source_prompt=_as_text(row.get("source_prompt")),
        edits=_edits_as_given(row.get("edits")),
        error_code=error.code,
        error=error.message,
    )


def _refused_edit(failure: EditFailure) -> EditWork:
    return EditWork(edit_id=failure.edit_id, error_code=failure.code, error=failure.message)


def _id_as_given(row: Row) -> str | None:
    """The id of a refused row, or the one that it would have had: its result row needs a name."""
    given, video = row.get("video_id"), row.get("video")
    if given is None and isinstance(video, str) and video.strip():
        return default_video_id(video)
    return _as_text(given)


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else repr(value)


def _edits_as_given(edits: Any) -> tuple[EditWork, ...]:
    """The ids and prompts of a refused row's edits, so that each has its result row."""
    if not isinstance(edits, list):
        return ()
    return tuple(
        EditWork(edit_id=_edit_id_as_given(edit), prompt=_as_text(edit.get("prompt")))
        for edit in edits
        if isinstance(edit, Mapping)
    )


def _edit_id_as_given(edit: Mapping[str, Any]) -> str | None:
    given = edit.get("edit_id")
    return default_id_of(edit) if given is None else _as_text(given)
