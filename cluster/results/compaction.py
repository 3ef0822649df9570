"""Compaction: the results rewritten as few files, with the newest row of each edit."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cluster.results.ledger import FOLDER, open_part, read_parts
from cluster.results.schema import join_tables, plain_rows, to_parquet
from pipeline.errors import ErrorCode
from pipeline.storage import Folder

ROWS_PER_FILE = 100_000
ROWS_AT_ONCE = 4096
INFO_COLUMNS = ["video_id", "edit_id", "finished_at", "error_code", "video", "fingerprint", "run"]
"""What `_RowInfo` is made from."""


def compact(output: Folder, run: str) -> None:
    """Leave one row for each edit, the newest, in files of about `ROWS_PER_FILE` rows.

    The new files are written before the old ones are removed. A run that is killed in between
    leaves some rows twice; the next run compacts again.

    Args:
        run: names the new files.
    """
    current = _is_current(output)
    rows = sum(map(len, current.values()))
    few = len(current) * ROWS_PER_FILE <= rows + ROWS_PER_FILE
    if few and all(kept.all() for kept in current.values()):
        return
    for file, table in enumerate(_rewritten(output, current)):
        output.write(f"{FOLDER}/{run}-compact-{file:06d}.parquet", to_parquet(table))
    for name in current:
        output.remove(name)


def current_rows(output: Folder) -> list[dict[str, Any]]:
    """The rows that `compact` leaves, whether or not it has run."""
    tables = read_current(output, find_current(output))
    return [row for table in tables for row in plain_rows(table)]


def find_current(output: Folder) -> dict[str, np.ndarray]:
    """The numbers of the rows that `compact` leaves, ascending, by file of the results."""
    return {name: np.flatnonzero(rows) for name, rows in _is_current(output).items()}


def _is_current(output: Folder) -> dict[str, np.ndarray]:
    """Whether `compact` leaves a row, [n] for each file of the results.

    17 bytes of each row are held, and the `_RowInfo` of those few that other rows may replace.
    """
    looks = {name: _look(table) for name, table in read_parts(output, INFO_COLUMNS)}
    if not looks:
        return {}
    looked = np.concatenate(list(looks.values()))
    hashes, counts = np.unique(looked["edit"], return_counts=True)
    repeated = hashes[counts > 1]
    without_edit_id = np.unique(looked["video"][~looked["has_edit_id"]])
    del looked, hashes, counts
    unsure = {
        name: np.isin(look["edit"], repeated) | np.isin(look["video"], without_edit_id)
        for name, look in looks.items()
    }
    infos = [
        _RowInfo.of(name, int(number), row)
        for name, rows in unsure.items()
        if rows.any()
        for number, row in zip(np.flatnonzero(rows), _info_rows(output, name, rows), strict=True)
    ]
    current = {name: ~rows for name, rows in unsure.items()}
    for info in _current(infos):
        current[info.part][info.number] = True
    return current


def read_current(
    output: Folder,
    current: Mapping[str, np.ndarray],
    wanted: Callable[[pa.Field], bool] = lambda field: True,
) -> Iterator[pa.Table]:
    """The rows that `find_current` found, in tables of at most `ROWS_AT_ONCE` rows.

    Args:
        wanted: which columns.
    """
    for name, numbers in current.items():
        with open_part(output, name) as file:
            columns = [field.name for field in file.schema_arrow if wanted(field)]
            start = 0
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                low, high = np.searchsorted(numbers, (start, start + batch.num_rows))
                table = pa.Table.from_batches([batch])
                if high - low < batch.num_rows:
                    table = table.take(pa.array(numbers[low:high] - start))
                if table.num_rows:
                    yield table
                start += batch.num_rows


_LOOK = np.dtype([("edit", "<u8"), ("video", "<u8"), ("has_edit_id", "?")])
# two hashes of 64 bits that are alike by chance only make their rows be compared as texts


def _look(table: pa.Table) -> np.ndarray:
    """What tells whether another row may replace a row, [n] of `_LOOK`."""
    look = np.zeros(table.num_rows, _LOOK)
    columns = [table[name].to_pylist() for name in ("video_id", "edit_id", "error_code", "video")]
    for at, (video_id, edit_id, code, video) in enumerate(zip(*columns, strict=True)):
        repeated = code == ErrorCode.DUPLICATE_VIDEO_ID
        edit = f"{video_id}\0{edit_id}\0{video if repeated else ''}"
        look[at] = (_hash(edit), _hash(str(video_id)), edit_id is not None)
    return look


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _info_rows(output: Folder, name: str, rows: np.ndarray) -> list[dict[str, Any]]:
    with open_part(output, name) as file:
        return file.read(columns=INFO_COLUMNS).filter(pa.array(rows)).to_pylist()


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


def _rewritten(output: Folder, current: Mapping[str, np.ndarray]) -> Iterator[pa.Table]:
    """The rows that stay, in tables of at least `ROWS_PER_FILE` rows but for the last.

    Args:
        current: whether a row stays, [n] for each file.
    """
    tables: list[pa.Table] = []
    count = 0
    for name, table in read_parts(output):
        rows = table.filter(pa.array(current[name]))
        tables.append(rows)
        count += rows.num_rows
        if count >= ROWS_PER_FILE:
            yield join_tables(tables)
            tables, count = [], 0
    if count:
        yield join_tables(tables)
