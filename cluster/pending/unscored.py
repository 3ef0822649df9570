"""Edits of earlier runs that are stored and lack a score which the job asks for.

They are found by columns: 10^6 rows in seconds. Their rows are read later, some at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.job import Job
from cluster.pending.done import KEY
from cluster.pending.fingerprints import edit_keys
from cluster.results.compaction import find_current, read_current
from cluster.results.damaged import Damaged, PartDamaged, warn
from cluster.results.newest import database
from cluster.results.schema import join_tables
from cluster.selection.entries import Selection
from pipeline.records import VideoSpec
from pipeline.storage import Folder

if TYPE_CHECKING:
    import duckdb

IDS = ("video_id", "edit_id", "fingerprint")
COLUMNS = frozenset((*IDS, "status", "scores"))


@dataclass
class Unscored:
    """Rows of the results, read once each. A run adds files and changes none of these.

    Args:
        output: the folder that holds them.
        rows: the numbers of the rows by file of the results, ascending.
    """

    output: Folder
    rows: dict[str, np.ndarray]

    def __len__(self) -> int:
        """How many are left to be taken."""
        return sum(map(len, self.rows.values()))

    def take(self, most: int) -> pa.Table | None:
        """At most so many rows, with all columns; None where none is left.

        Raises:
            Unreadable: storage does not give a file; all rows are still left.
        """
        tables: list[pa.Table] = []
        left = dict(self.rows)
        while left and most > 0:
            name = next(iter(left))
            numbers = left.pop(name)
            now, later = numbers[:most], numbers[most:]
            try:
                tables += read_current(self.output, {name: now})
                most -= len(now)
            except PartDamaged as error:
                warn(error.damaged)
                later = numbers[:0]
            left = ({name: later} if len(later) else {}) | left
        self.rows = left  # at once: another thread may count them
        return join_tables(tables) if tables else None


def find_unscored(
    job: Job,
    wanted: Mapping[str, str],
    *,
    selection: Selection | None = None,
    on_damaged: Callable[[Damaged], None] = warn,
) -> Unscored:
    """Find the edits that are done, by their newest row, and lack a score.

    An edit that the manifest does not have any more, or has with other settings, is not one.

    Args:
        wanted: the fingerprint of each kind of score that the job asks for.
        selection: of the edits; all by default.

    Raises:
        Unreadable: storage does not give a file.
    """
    output = Folder(job.editing.output)
    if not wanted:
        return Unscored(output, {})
    names: list[str] = []
    with database() as found:
        found.execute("CREATE TABLE lacking (part INTEGER, number BIGINT, key UHUGEINT)")
        for name, numbers, ids in _lacking(output, wanted, on_damaged):
            if names[-1:] != [name]:
                names.append(name)
            keep = selected(ids, selection)
            batch = ids.append_column("number", pa.array(numbers)).filter(keep)
            found.register("batch", batch)
            found.execute(f"INSERT INTO lacking SELECT {len(names) - 1}, number, {KEY} FROM batch")
            found.unregister("batch")
        if not found.execute("SELECT count(*) FROM lacking").fetchall()[0][0]:
            return Unscored(output, {})
        _load_keys(found, job)
        rows = found.execute(
            "SELECT part, number FROM lacking SEMI JOIN keys USING (key) ORDER BY part, number"
        ).fetchnumpy()
    parts, numbers = rows["part"], rows["number"].astype(np.int64)
    return Unscored(output, {names[part]: numbers[parts == part] for part in np.unique(parts)})


def lacks(table: pa.Table, wanted: Mapping[str, str]) -> np.ndarray:
    """Whether rows of the results are of stored edits without a score, [n].

    Args:
        wanted: the fingerprint of each kind of score.
    """
    lacking = np.zeros(table.num_rows, bool)
    for kind, fingerprint in wanted.items():
        known = pc.fill_null(pc.equal(_fingerprints(table, kind), fingerprint), False)
        lacking |= ~known.to_numpy(zero_copy_only=False)
    stored = pc.fill_null(pc.equal(table["status"], "ok"), False)
    return np.asarray(lacking & stored.to_numpy(zero_copy_only=False))


def _lacking(
    output: Folder, wanted: Mapping[str, str], on_damaged: Callable[[Damaged], None]
) -> Iterator[tuple[str, np.ndarray, pa.Table]]:
    """File, numbers and ids of the rows that lack a score, of those that count."""
    for name, numbers in find_current(output, on_damaged).items():
        start = 0
        for table in read_current(output, {name: numbers}, lambda field: field.name in COLUMNS):
            places = numbers[start : start + table.num_rows]
            start += table.num_rows
            chosen = lacks(table, wanted)
            if chosen.any():
                yield name, places[chosen], table.select(list(IDS)).filter(pa.array(chosen))


def selected(ids: pa.Table, selection: Selection | None) -> pa.Array:
    """Whether each row is of a selection."""
    if selection is None:
        return pa.array(np.ones(ids.num_rows, bool))
    both = zip(ids["video_id"].to_pylist(), ids["edit_id"].to_pylist(), strict=True)
    return pa.array([selection.takes(*one) for one in both], pa.bool_())


def _load_keys(connection: duckdb.DuckDBPyConnection, job: Job) -> None:
    """Make a table `keys` of what stands for the edits of the manifest, under today's settings."""
    connection.execute("CREATE TABLE keys (key UHUGEINT)")
    names, own = [field.name for field in fields(VideoSpec)], job.fingerprint()
    for table in job.files.tables(names):
        keys = pa.table(edit_keys(job, own, table)._asdict(), schema=_KEYS)
        connection.register("batch", keys)
        connection.execute(f"INSERT INTO keys SELECT {KEY} FROM batch WHERE fingerprint != ''")
        connection.unregister("batch")


def _fingerprints(table: pa.Table, kind: str) -> pa.ChunkedArray:
    """Those of one kind of score; null where a row, or the file, has none."""
    column = table["scores"] if "scores" in table.column_names else None
    for name in (kind, "fingerprint"):
        if column is None or not pa.types.is_struct(column.type):
            break
        column = pc.struct_field(column, name) if column.type.get_field_index(name) >= 0 else None
    if column is None or not pa.types.is_string(column.type):
        return pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    return column


_KEYS = pa.schema({name: pa.string() for name in IDS})
