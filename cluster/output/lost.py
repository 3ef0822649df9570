"""Edits that the results call done and whose files are gone, empty or other ones.

They are found by one listing of `edits/` (and of `candidates/`, where an edit lies before the best
candidate is chosen), and of `masks/` where edits have some, and marked: a newer row says that the
edit is lost, so it is pending again. Whoever marks holds the output folder's lease.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.candidates.made import FOLDER as CANDIDATES
from cluster.results.compaction import find_current, read_current
from cluster.results.damaged import Damaged, setter_aside, warn
from cluster.results.newest import database, newest_rows
from cluster.results.parts import FOLDER, read_parts
from cluster.results.schema import SCHEMA, join_tables, to_parquet
from pipeline.errors import ErrorCode
from pipeline.storage import Folder

if TYPE_CHECKING:
    import duckdb

EDITS, MASKS = "edits", "masks"
LOCAL_ROWS, OTHER_ROWS = 1_000_000, 100_000
"""A run lists the files of up to so many edits, in some 10 s: those of a local folder, and those of
object storage, which lists 1000 with each request. `retake verify` lists any number."""
NAMES_AT_ONCE = 100_000


@dataclass(frozen=True)
class Lost:
    """An edit that is done as the results say, and is not.

    Args:
        output: its file, relative to the output folder.
        why: "<output>: <why>".
    """

    output: str
    why: str


def before_a_run(output: Folder, run: str, note: Callable[[str], None]) -> None:
    """Bring an output folder to what its results say, before a run compares them.

    Damaged files of results are set aside. Of results with very many rows this does nothing.

    Args:
        run: the name of the run, for the file of the marks.
        note: gets a sentence about what was found.

    Raises:
        Unreadable: storage does not give a file.
    """
    if not few_rows(output):
        return
    if lost := find_lost(output, setter_aside(note)):
        marked = mark(output, run, lost)
        note(
            f"{marked} edit{'s' * (marked != 1)} that the results call done will be made again: "
            f"{lost[0].output} {lost[0].why}{', for one' * (len(lost) > 1)}"
        )


def find_lost(
    output: Folder,
    on_damaged: Callable[[Damaged], None] = warn,
    without: Collection[str] = (),
) -> list[Lost]:
    """The edits whose files are gone or empty, or have another size than was written.

    One whose mask's file is gone or empty is lost too: what reads the pair needs both.

    Args:
        on_damaged, without: as of `read_parts`.
    """
    columns = {"output": "output", "size_bytes": "size_bytes", "mask": "mask"}
    columns["ok"] = "status = 'ok'"
    with database() as tables:
        more = ["output", "size_bytes", "mask"]
        newest_rows(tables, output, columns, on_damaged, more=more, without=without)
        tables.execute("CREATE TABLE listed (name VARCHAR, size BIGINT)")
        list_files(tables, output, EDITS)
        list_files(tables, output, CANDIDATES)
        found = tables.execute(
            "SELECT output, size, size_bytes FROM newest LEFT JOIN listed ON output = name "
            "WHERE ok AND output IS NOT NULL AND "
            "(name IS NULL OR size = 0 OR size != size_bytes) ORDER BY output"
        ).fetchall()
        lost = {name: _why(size, written) for name, size, written in found}
        if tables.execute("SELECT 1 FROM newest WHERE mask IS NOT NULL LIMIT 1").fetchall():
            list_files(tables, output, MASKS)
            without_mask = tables.execute(
                "SELECT output, mask, size FROM newest LEFT JOIN listed ON mask = name "
                "WHERE ok AND output IS NOT NULL AND mask IS NOT NULL AND "
                "(name IS NULL OR size = 0) ORDER BY output"
            ).fetchall()
            for name, mask, size in without_mask:
                lost.setdefault(name, f"has lost its mask: {mask} {_why(size, None)}")
    return [Lost(name, why) for name, why in lost.items()]


def list_files(tables: duckdb.DuckDBPyConnection, output: Folder, folder: str) -> None:
    """Add the files of a folder to the table `listed`, with their sizes."""
    files = output.sizes(folder)
    while some := list(islice(files, NAMES_AT_ONCE)):
        names, sizes = zip(*some, strict=True)
        listed = pa.table({"name": pa.array(names, pa.string()), "size": list(sizes)})
        tables.register("found", listed)
        tables.execute("INSERT INTO listed SELECT * FROM found")
        tables.unregister("found")


def mark(output: Folder, run: str, lost: Sequence[Lost]) -> int:
    """Store a newer row for each lost edit: it failed with `edit_lost`, so it is pending again.

    Args:
        run: names the file; later than all runs with results.

    Returns:
        How many rows were marked.
    """
    why = {one.output: f"{output.uri}/{one.output}: {one.why}" for one in lost}
    tables = list(_marks(output, why))
    if tables:
        output.write(f"{FOLDER}/{run}-lost.parquet", to_parquet(join_tables(tables)))
    return sum(table.num_rows for table in tables)


def _marks(output: Folder, why: Mapping[str, str]) -> Iterator[pa.Table]:
    """The newest rows of lost edits as they are marked.

    A mark keeps its row's run, so that it sorts after this row and before those of later runs.
    """
    for table in read_current(output, find_current(output, lambda damaged: None)):
        texts = [why.get(name) for name in table["output"].to_pylist()]
        is_lost = pa.array([text is not None for text in texts])
        rows = table.filter(is_lost)
        if not rows.num_rows:
            continue
        after = pc.add(rows["finished_at"], pa.scalar(1, pa.duration("us")))
        values = {
            "status": "failed",
            "error_code": ErrorCode.EDIT_LOST.value,
            "error": [text for text in texts if text is not None],
            "output": None,
            "mask": None,
            "accepted": None,
            "size_bytes": None,
            "finished_at": after,
        }
        yield _with_values(rows, values)


def _with_values(rows: pa.Table, values: Mapping[str, Any]) -> pa.Table:
    """The rows with other values in some columns: one for all rows, or one for each."""
    for name, value in values.items():
        field = SCHEMA.field(name)
        if value is None or isinstance(value, str):
            value = [value] * rows.num_rows
        column = value if isinstance(value, pa.ChunkedArray) else pa.array(value, field.type)
        if name in rows.column_names:
            rows = rows.drop_columns([name])
        rows = rows.append_column(field, column.cast(field.type))
    return rows


def few_rows(output: Folder) -> bool:
    """Whether the results have so few rows that a run lists the edits' files."""
    most, rows = LOCAL_ROWS if output.is_local else OTHER_ROWS, 0
    with closing(read_parts(output, ["run"], lambda damaged: None)) as parts:
        for _, part in parts:
            rows += part.num_rows
            if rows > most:
                return False
    return rows > 0


def _why(size: int | None, written: int | None) -> str:
    if size is None:
        return "is gone"
    if size == 0:
        return "is empty"
    return f"has {size} bytes, and {written} were written"
