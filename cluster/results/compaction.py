"""Compaction: the results rewritten as few files, with the newest row of each edit."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa

from cluster.results.ledger import FOLDER, read_parts
from cluster.results.schema import join_tables, to_parquet
from pipeline.errors import ErrorCode
from pipeline.storage import Folder

ROWS_PER_FILE = 100_000


def compact(output: Folder, run: str) -> None:
    """Leave one row for each edit, the newest, in files of about `ROWS_PER_FILE` rows.

    The new files are written before the old ones are removed. A run that is killed in between
    leaves some rows twice; the next run compacts again.

    Args:
        run: names the new files.
    """
    columns = ["video_id", "edit_id", "finished_at", "error_code", "video", "fingerprint", "run"]
    parts, rows = [], []
    for name, table in read_parts(output, columns):
        parts.append(name)
        rows += [_RowInfo.of(name, number, row) for number, row in enumerate(table.to_pylist())]
    current = _current(rows)
    if len(current) == len(rows) and len(parts) * ROWS_PER_FILE <= len(rows) + ROWS_PER_FILE:
        return
    indices: dict[str, list[int]] = {}
    for row in current:
        indices.setdefault(row.part, []).append(row.number)
    for file, table in enumerate(_rewritten(output, indices)):
        output.write(f"{FOLDER}/{run}-compact-{file:06d}.parquet", to_parquet(table))
    for name in parts:
        output.remove(name)


def current_rows(output: Folder) -> list[dict[str, Any]]:
    """The rows that `compact` leaves, whether or not it has run."""
    infos, rows = [], []
    for name, table in read_parts(output):
        for number, row in enumerate(table.to_pylist()):
            infos.append(_RowInfo.of(name, number, row))
            rows.append(row)
    current = {(info.part, info.number) for info in _current(infos)}
    return [
        row for info, row in zip(infos, rows, strict=True) if (info.part, info.number) in current
    ]


class _RowInfo(NamedTuple):
    """Where a row lies in the results, and what decides whether it is current.

    Args:
        part, number: the file, and the row's number in it.
        edit: identifies the edit. A row that was refused because its `video_id` is another row's
            has an identity of its own, so that it does not replace that row.
        has_edit_id: False where the row check could not read the edits of the video.
        refused: by the row check, which may have met other rows with the same ids.
    """

    part: str
    number: int
    video_id: str | None
    edit: str
    has_edit_id: bool
    refused: bool
    run: str
    finished_at: datetime

    @classmethod
    def of(cls, part: str, number: int, row: Mapping[str, Any]) -> _RowInfo:
        repeated = row["error_code"] == ErrorCode.DUPLICATE_VIDEO_ID
        return cls(
            part=part,
            number=number,
            video_id=row["video_id"],
            edit=f"{row['video_id']}\0{row['edit_id']}\0{row['video'] if repeated else ''}",
            has_edit_id=row["edit_id"] is not None,
            refused=row["fingerprint"] is None,
            run=sys.intern(row["run"] or ""),
            finished_at=row["finished_at"],
        )


def _current(rows: Sequence[_RowInfo]) -> list[_RowInfo]:
    """The rows that stay, in order.

    Of the rows of one edit the newest stays. Rows that the row check refused may have the same
    ids, or none, and each reports a fault of its own: all of the newest run's stay. A row without
    an `edit_id` goes when a later run has rows of the video with one.
    """
    newest: dict[str, _RowInfo] = {}
    last_run: dict[str | None, str] = {}
    for row in rows:
        if row.edit not in newest or newest[row.edit].finished_at <= row.finished_at:
            newest[row.edit] = row
        if row.has_edit_id:
            last_run[row.video_id] = max(last_run.get(row.video_id, ""), row.run)
    current, copies = [], _Copies()
    for row in rows:
        last = newest[row.edit]
        if not row.has_edit_id and last_run.get(row.video_id, "") > row.run:
            continue
        beside_last = row.refused and last.refused and row.run == last.run
        if copies.is_first(row) if beside_last else row is last:
            current.append(row)
    return current


class _Copies:
    """Finds the copies of refused rows that a killed compaction leaves in a second part.

    Rows of one table have the same time and lie in one part; there they are counted.
    """

    def __init__(self) -> None:
        self._within_part: Counter[tuple[str, str, datetime]] = Counter()
        self._seen: set[tuple[str, datetime, int]] = set()

    def is_first(self, row: _RowInfo) -> bool:
        place = (row.part, row.edit, row.finished_at)
        self._within_part[place] += 1
        identity = (row.edit, row.finished_at, self._within_part[place])
        first = identity not in self._seen
        self._seen.add(identity)
        return first


def _rewritten(output: Folder, indices: Mapping[str, Sequence[int]]) -> Iterator[pa.Table]:
    """The rows that stay, in tables of at least `ROWS_PER_FILE` rows but for the last.

    Args:
        indices: of the rows that stay, by part.
    """
    tables: list[pa.Table] = []
    count = 0
    for name, table in read_parts(output):
        rows = table.take(pa.array(indices.get(name, ()), pa.int64()))
        tables.append(rows)
        count += rows.num_rows
        if count >= ROWS_PER_FILE:
            yield join_tables(tables)
            tables, count = [], 0
    if count:
        yield join_tables(tables)
