"""The rule of the newest row, by DuckDB: of all rows of one edit that of the newest run counts; of
several of one run, the one finished last.

The times of two runs are not compared: they are of nodes whose clocks may differ. The names of runs
sort as the runs followed each other (`cluster/output/naming.py`).

Results may have more rows than fit into memory as Python objects, or at all: DuckDB works by
columns, on all cores, and puts on disk what is too much.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from cluster.results.damaged import Damaged, warn
from cluster.results.parts import read_parts
from cluster.results.schema import SCHEMA
from pipeline.storage import Folder

if TYPE_CHECKING:
    import duckdb

MEMORY = "2GB"
"""What a database holds in memory; about 10^7 edits. The rest is in a temporary folder."""
EDIT = "md5_number(concat(video_id, chr(0), edit_id))"
"""What stands for an edit, 128 bits: no two of 10^9 edits are alike by chance."""


@contextmanager
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty database of DuckDB, which is gone after the block with all that it put on disk."""
    import duckdb

    # DuckDB makes it where memory is not enough: else a killed process leaves nothing.
    folder = f"{tempfile.gettempdir()}/retake-{uuid.uuid4().hex[:12]}"
    settings: dict[str, str | bool | int | float | list[str]] = {
        "temp_directory": folder,
        "memory_limit": MEMORY,
        "threads": min(8, os.cpu_count() or 1),
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "preserve_insertion_order": False,
    }
    try:
        with closing(duckdb.connect(":memory:", config=settings)) as connection:
            connection.execute("SET enable_progress_bar = false")
            yield connection
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def newest_rows(
    database: duckdb.DuckDBPyConnection,
    output: Folder,
    columns: Mapping[str, str],
    on_damaged: Callable[[Damaged], None] = warn,
    table: str = "newest",
    more: Sequence[str] = (),
    without: Collection[str] = (),
) -> int:
    """Make a table with the newest row of each edit.

    Rows without a fingerprint are left out: the check refused them, perhaps for having the ids of
    another row, and they say nothing of the edit.

    Args:
        columns: of the table, by name: what is kept of a row, in SQL over `video_id`, `edit_id`,
            `fingerprint`, `status` and `EDIT`.
        on_damaged, without: as of `read_parts`.
        table: its name.
        more: columns of the results that `columns` names beside those above.

    Returns:
        How many rows it has.

    Raises:
        Unreadable: storage does not give a file.
    """
    kept = "".join(f", {what} AS {name}" for name, what in columns.items())
    select = f"SELECT {EDIT} AS _edit, coalesce(run, '') AS _run, _finished, _place{kept} FROM part"
    wanted = ["video_id", "edit_id", "fingerprint", "status", "run", "finished_at", *more]
    rows, made = 0, False
    for _, part in read_parts(output, wanted, on_damaged, without):
        database.register("part", as_loaded(part, rows))
        query = f"{select} WHERE fingerprint != ''"
        database.execute(f"INSERT INTO _all {query}" if made else f"CREATE TABLE _all AS {query}")
        database.unregister("part")
        rows, made = rows + part.num_rows, True
    if not made:
        database.register("part", as_loaded(SCHEMA.empty_table().select(wanted), 0))
        database.execute(f"CREATE TABLE _all AS {select}")
        database.unregister("part")
    database.execute(f"CREATE TABLE {table} AS {_NEWEST}")
    database.execute("DROP TABLE _all")
    return int(database.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])


_NEWEST = """
WITH again AS (SELECT _edit FROM _all GROUP BY _edit HAVING count(*) > 1)
SELECT * EXCLUDE (_edit, _run, _finished, _place) FROM _all ANTI JOIN again USING (_edit)
UNION ALL
SELECT * EXCLUDE (_edit, _run, _finished, _place) FROM (
    SELECT * FROM _all SEMI JOIN again USING (_edit)
    QUALIFY row_number() OVER (
        PARTITION BY _edit ORDER BY _run DESC, _finished DESC, _place DESC
    ) = 1
)
"""


def as_loaded(part: pa.Table, before: int) -> pa.Table:
    """A file's rows as they go into a database.

    `_finished` is when, in microseconds; `_place` counts the rows of all files, of which `before`
    came before: of two rows of one run and moment the later one is newer.
    """
    times = part["finished_at"].cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.int64())
    places = pa.array(np.arange(before, before + part.num_rows))
    table = part.drop_columns(["finished_at"])
    return table.append_column("_finished", times).append_column("_place", places)
