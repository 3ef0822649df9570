"""What is pending of rows that a test writes down, without a manifest file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, cast

import pyarrow as pa

from cluster.job import Job
from cluster.manifest import ManifestFiles
from cluster.pending.check import RowCheck
from cluster.pending.done import find_answered
from cluster.pending.rows import PendingRows
from cluster.pending.scan import scan_manifest
from cluster.results.failed import FailedOf
from cluster.results.newest import database, newest_rows
from cluster.results.schema import SCHEMA, to_parquet
from cluster.selection.entries import Selection
from cluster.stages.blocks import VideoWork, work_of
from pipeline.errors import ErrorCode
from pipeline.records import EditResult, VideoSpec, arrow_schema
from pipeline.storage import Folder


@dataclass(frozen=True)
class TableFiles:
    """Stands for the files of a manifest: its rows are one table."""

    table: pa.Table

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        names = self.table.column_names
        yield self.table.select([n for n in names if columns is None or n in columns])


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The rows as a table of the columns that they have, or without any row that of a manifest."""
    return pa.Table.from_pylist(list(rows), None if rows else arrow_schema(VideoSpec))


def with_rows(job: Job, rows: Sequence[Mapping[str, Any]] | pa.Table) -> Job:
    """The job with a manifest of these rows."""
    table = rows if isinstance(rows, pa.Table) else table_of(rows)
    return replace(job, files=cast(ManifestFiles, TableFiles(table)))


def pending_of(
    job: Job,
    rows: Sequence[Mapping[str, Any]] | pa.Table | None = None,
    *,
    selection: Selection | None = None,
    limit: int | None = None,
    retry_quarantined: bool = False,
    only: FailedOf | None = None,
) -> PendingRows:
    """What is pending of a job's manifest, or of these rows in its place."""
    job = job if rows is None else with_rows(job, rows)
    scan = scan_manifest(job.files)
    answered = find_answered(job, scan, retry_quarantined=retry_quarantined, only=only)
    return PendingRows(job, scan, answered, selection, limit)


def work_of_row(job: Job, row: Mapping[str, Any], **how: Any) -> VideoWork | None:
    """What is to be done for a manifest row, done and refused edits as `RowCheck.work` has them."""
    (filled,) = table_of([row]).to_pylist()
    return RowCheck.of(job).work(filled, **how)


def work_table(job: Job, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The block of work of these rows: what was refused is not in it."""
    return pa.concat_tables([checked.work for checked in pending_of(job, rows)])


def done_edits(output: Folder) -> set[tuple[str, str, str]]:
    """The ids and the fingerprint of each edit whose newest row is `ok`."""
    columns = {name: name for name in ("video_id", "edit_id", "fingerprint", "status")}
    with database() as found:
        newest_rows(found, output, columns)
        rows = found.execute("SELECT video_id, edit_id, fingerprint FROM newest WHERE status='ok'")
        return set(rows.fetchall())


def answer(
    rows: PendingRows,
    status: str = "ok",
    *,
    run: str = "r1",
    code: ErrorCode | None = None,
    takes: Callable[[str, str], bool] = lambda video_id, edit_id: True,
) -> None:
    """Store results of what is pending, as a run would that made just that.

    Args:
        takes: which edits, by their ids.
    """
    results = [
        EditResult(
            video_id=video.video_id,
            edit_id=edit.edit_id,
            status=status,
            error_code=code,
            fingerprint=edit.fingerprint,
            run=run,
            finished_at=datetime.now(UTC),
        )
        for checked in rows
        for video in work_of(checked.work)
        for edit in video.edits
        if takes(str(video.video_id), str(edit.edit_id))
    ]
    table = pa.Table.from_pylist([asdict(result) for result in results], SCHEMA)
    Folder(rows.job.editing.output).write(f"results/{run}.parquet", to_parquet(table))
