"""The first stage: manifest rows to work, with what is done left out and what is wrong refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from cluster.job import Job
from cluster.results.ledger import Keys, done_key
from cluster.rows import EditFailure, check_row, default_id_of, default_video_id
from cluster.selection.entries import Selection, names_of
from cluster.stages.blocks import EditWork, VideoWork, manifest_rows, rebuilt, row_digest
from pipeline.errors import ErrorCode, RowError
from pipeline.records import EditSpec, VideoSpec

Row = Mapping[str, Any]


class CheckRows:
    """Manifest rows to work: ids, prompts and numbers checked, edits that are done left out.

    Runs as one actor, since it is what knows which ids were seen. It opens no file.

    Args:
        done: the keys of edits that are not pending.
        repeated: for each `video_id` that several rows have, the digest of the first of them.
        selection: the edits that the run takes; all of them by default.
    """

    def __init__(
        self,
        job: Job,
        done: Keys,
        repeated: Mapping[str, str],
        selection: Selection | None = None,
    ) -> None:
        self.job, self.done, self.repeated, self.selection = job, done, repeated, selection
        self.job_fingerprint = job.fingerprint()
        self.seen: set[str] = set()

    def __call__(self, table: pa.Table) -> pa.Table:
        work = list(self.work_of(table))
        return rebuilt(table, [video for video, _ in work], [origin for _, origin in work])

    def work_of(self, table: pa.Table) -> Iterator[tuple[VideoWork, int]]:
        """What is to be done for the rows of a table, and of which row each is."""
        for origin, _, work in self.look(table):
            if work:
                yield work, origin

    def look(self, table: pa.Table) -> Iterator[tuple[int, Row, VideoWork | None]]:
        """Each row of a table with its number, and what is to be done for it.

        That is None where all that the run takes of it is done.
        """
        for origin, row in enumerate(manifest_rows(table)):
            work = self._work(row, partial(row_digest, table, origin))
            yield origin, row, self.selection.part(work) if work and self.selection else work

    def selected(self, row: Row) -> int:
        """How many edits of a manifest row the run takes, done or not."""
        if self.selection is None:
            return len(row.get("edits") or ()) or 1
        video_id, edits = names_of(row)
        return sum(self.selection.takes(video_id, edit_id) for edit_id in edits)

    def _work(self, row: Row, digest: Callable[[], str]) -> VideoWork | None:
        try:
            checked = check_row(row, base=self.job.base)
            self._refuse_repeated(str(checked.video.video_id), digest)
        except RowError as error:
            return _refused(row, error)
        video = checked.video
        edits = [edit for edit in (self._pending(video, e) for e in video.edits) if edit]
        edits += [_refused_edit(failure) for failure in checked.failures]
        if not edits:
            return None
        return VideoWork(**vars(video) | {"edits": tuple(edits)})  # asdict would copy the edits

    def _pending(self, video: VideoSpec, edit: EditSpec) -> EditWork | None:
        """An edit with its fingerprint; None where it is done."""
        fingerprint = self.job.edit_fingerprint(self.job_fingerprint, video, edit)
        if done_key(str(video.video_id), str(edit.edit_id), fingerprint) in self.done:
            return None
        return EditWork(**vars(edit), fingerprint=fingerprint)

    def _refuse_repeated(self, video_id: str, digest: Callable[[], str]) -> None:
        if video_id not in self.repeated:
            return
        first = self.repeated[video_id] == digest() and video_id not in self.seen
        if not first:
            raise RowError(
                ErrorCode.DUPLICATE_VIDEO_ID,
                f"video_id {video_id!r} stands in another row of the manifest too; only the "
                "first row with it is taken. Give every row its own video_id",
            )
        self.seen.add(video_id)


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
