"""Compaction: the results rewritten as few files, with the newest row of each edit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.results.damaged import Damaged, PartDamaged, warn
from cluster.results.newest import as_loaded, database
from cluster.results.parts import FOLDER, open_part, read_parts
from cluster.results.schema import join_tables, plain_rows, to_parquet
from pipeline.errors import ErrorCode, NoMemory
from pipeline.storage import Folder

ROWS_PER_FILE = 100_000
ROWS_AT_ONCE = 4096
INFO_COLUMNS = ["video_id", "edit_id", "finished_at", "error_code", "video", "fingerprint", "run"]
"""What decides whether a row is current."""


def compact(output: Folder, run: str, on_damaged: Callable[[Damaged], None] = warn) -> None:
    """Leave one row for each edit, the newest, in files of about `ROWS_PER_FILE` rows.

    The new files are written before the old ones are removed. A run that is killed in between
    leaves some rows twice; the next run compacts again. A damaged file is left where it is.

    Args:
        run: names the new files.
        on_damaged: called with each file that is damaged.
    """
    current = _is_current(output, on_damaged)
    rows = sum(map(len, current.values()))
    few = len(current) * ROWS_PER_FILE <= rows + ROWS_PER_FILE
    if few and all(kept.all() for kept in current.values()):
        return
    read: list[str] = []
    written = set()
    for file, table in enumerate(_rewritten(output, current, read, on_damaged)):
        name = f"{FOLDER}/{run}-compact-{file:06d}.parquet"
        output.write(name, to_parquet(table))
        written.add(name)
    for name in read:
        if name not in written:
            output.remove(name)


def current_rows(output: Folder) -> list[dict[str, Any]]:
    """The rows that `compact` leaves, whether or not it has run."""
    tables = read_current(output, find_current(output))
    return [row for table in tables for row in plain_rows(table)]


def find_current(
    output: Folder,
    on_damaged: Callable[[Damaged], None] = warn,
    without: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """The numbers of the rows that `compact` leaves, ascending, by file of the results.

    Args:
        on_damaged, without: as of `read_parts`.
    """
    current = _is_current(output, on_damaged, without)
    return {name: np.flatnonzero(rows) for name, rows in current.items()}


def read_current(
    output: Folder,
    current: Mapping[str, np.ndarray],
    wanted: Callable[[pa.Field], bool] = lambda field: True,
) -> Iterator[pa.Table]:
    """The rows that `find_current` found, in tables of at most `ROWS_AT_ONCE` rows.

    Args:
        wanted: which columns.

    Raises:
        PartGone: a run has put files together since `find_current`: find them again.
        PartDamaged: a file is damaged where `find_current` did not look.
    """
    for name, numbers in current.items():
        file = open_part(output, name)
        columns = [field.name for field in file.schema_arrow if wanted(field)]
        start = 0
        try:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                low, high = np.searchsorted(numbers, (start, start + batch.num_rows))
                table = pa.Table.from_batches([batch])
                if high - low < batch.num_rows:
                    table = table.take(pa.array(numbers[low:high] - start))
                if table.num_rows:
                    yield table
                start += batch.num_rows
        except MemoryError as error:
            raise NoMemory(f"results {output.uri}/{name}", error) from error
        except (OSError, pa.ArrowException) as error:
            raise PartDamaged(Damaged.by(output, name, None, error)) from error


def _is_current(
    output: Folder, on_damaged: Callable[[Damaged], None], without: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Whether `compact` leaves a row, [n] for each file of the results."""
    current: dict[str, np.ndarray] = {}
    with database() as rows:
        rows.execute(_ROWS)
        before = 0
        for name, part in read_parts(output, INFO_COLUMNS, on_damaged, without):
            rows.register("part", as_loaded(part, before))
            query = _LOADED.format(part=len(current), before=before)
            rows.execute(f"INSERT INTO _rows {query}", [ErrorCode.DUPLICATE_VIDEO_ID.value])
            rows.unregister("part")
            current[name] = np.ones(part.num_rows, bool)
            before += part.num_rows
        replaced = rows.execute(_REPLACED).fetchnumpy()
    names = list(current)
    order = np.argsort(replaced["part"], kind="stable")
    parts, numbers = replaced["part"][order], replaced["number"][order]
    for part in np.unique(parts):
        low, high = np.searchsorted(parts, (part, part + 1))
        current[names[part]][numbers[low:high]] = False
    return current


_ROWS = """
CREATE TABLE _rows (
    part INTEGER, number INTEGER, place BIGINT,  -- the file, the row's number in it and in all
    edit UBIGINT, video UBIGINT,                 -- hashes, which select what is compared as text
    video_id VARCHAR, edit_id VARCHAR, twin VARCHAR,
    refused BOOLEAN, run VARCHAR, finished BIGINT
)
"""
_LOADED = """
SELECT {part}, _place - {before}, _place, hash(video_id, edit_id, twin), hash(video_id),
    video_id, edit_id, twin, fingerprint IS NULL, coalesce(run, ''), coalesce(_finished, 0)
FROM (SELECT *, CASE WHEN error_code = ? THEN video END AS twin FROM part)
"""
"""A row that was refused because its `video_id` is another row's has a `twin`: an identity of its
own, so that it does not replace that row."""
_REPLACED = """
WITH unsure AS (
    SELECT * FROM _rows
    WHERE edit IN (SELECT edit FROM _rows GROUP BY edit HAVING count(*) > 1)
    OR video IN (SELECT video FROM _rows WHERE edit_id IS NULL)
), compared AS (
    SELECT *,
        row_number() OVER newest_first = 1 AS is_newest,
        refused AND first_value(refused) OVER newest_first
            AND run = first_value(run) OVER newest_first AS beside_newest,
        edit_id IS NULL AND coalesce(max(run) FILTER (WHERE edit_id IS NOT NULL)
            OVER (PARTITION BY video_id), '') > run AS outdated
    FROM unsure
    WINDOW newest_first AS (
        PARTITION BY video_id, edit_id, twin ORDER BY run DESC, finished DESC, place DESC
    )
), refused_rows AS (
    SELECT *, row_number() OVER (
        PARTITION BY video_id, edit_id, twin, finished, part ORDER BY number
    ) AS copy
    FROM compared WHERE beside_newest AND NOT outdated
), stays AS (
    SELECT place FROM compared WHERE is_newest AND NOT beside_newest AND NOT outdated
    UNION ALL
    SELECT place FROM refused_rows
    QUALIFY row_number() OVER (
        PARTITION BY video_id, edit_id, twin, finished, copy ORDER BY place
    ) = 1
)
SELECT part, number FROM unsure ANTI JOIN stays USING (place)
"""
"""Of the rows of one edit the newest stays. Rows that the row check refused may have the same ids,
or none, and each reports a fault of its own: all of the newest run's stay. A row without an
`edit_id` goes when a later run has rows of the video with one. A killed compaction leaves copies of
refused rows in a second file; rows of one table have the same time and lie in one file, where they
are counted."""


def _rewritten(
    output: Folder,
    current: Mapping[str, np.ndarray],
    read: list[str],
    on_damaged: Callable[[Damaged], None],
) -> Iterator[pa.Table]:
    """The rows that stay, in tables of at least `ROWS_PER_FILE` rows but for the last.

    Args:
        current: whether a row stays, [n] for each file.
        read: gets the names of the files that were read.
    """
    tables: list[pa.Table] = []
    count = 0
    for name, table in read_parts(output, None, on_damaged):
        if name not in current:  # stored since
            continue
        read.append(name)
        rows = table.filter(pa.array(current[name]))
        tables.append(rows)
        count += rows.num_rows
        if count >= ROWS_PER_FILE:
            yield join_tables(tables)
            tables, count = [], 0
    if count:
        yield join_tables(tables)
