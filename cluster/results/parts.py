"""The files of the results: listed, read side by side, and looked at for damage.

A run adds files and puts small ones together while it goes on. So a reader may find that a file of
its list is gone: its rows are then in a file that the list of now has. A reader that lists again
reads some rows twice, which the rule of the newest row (`newest.py`) takes for one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.results.damaged import Damaged, PartDamaged, warn
from cluster.results.schema import SCHEMA, foreign
from pipeline.errors import Unreadable
from pipeline.storage import Folder, explain

FOLDER = "results"
READERS = 16
"""Files that are fetched side by side: over a network each takes some 50 ms, however small."""
LISTINGS = 20
"""A reader that meets so many lists with files that are gone by then gives up."""


class PartGone(Unreadable):
    """A file of the results was put together with others since the folder was listed."""


def part_names(output: Folder) -> list[str]:
    """The files of the results, oldest run first."""
    return [n for n in output.list(FOLDER) if n.endswith(".parquet") and n.count("/") == 1]


def read_parts(
    output: Folder,
    columns: Sequence[str] | None = None,
    on_damaged: Callable[[Damaged], None] = warn,
    without: Collection[str] = (),
) -> Iterator[tuple[str, pa.Table]]:
    """The files of the results, oldest run first: the name of each and its rows.

    Where files go meanwhile the list is read again, and rows may come twice.

    Args:
        columns: the wanted ones; all by default. One that a file lacks is null there.
        on_damaged: called with each file that is left out because it is damaged.
        without: files that are left out because they are known to be.

    Raises:
        Unreadable: storage does not give a file.
    """
    seen = set(without)
    for _ in range(LISTINGS):
        names = [name for name in part_names(output) if name not in seen]
        gone = False
        with closing(_side_by_side(output, names, columns)) as parts:
            for name, part in parts:
                if isinstance(part, PartGone):
                    gone = True
                    continue
                seen.add(name)
                if isinstance(part, PartDamaged):
                    on_damaged(part.damaged)
                else:
                    yield name, part
        if not gone:
            return
    raise Unreadable(f"results {output.uri}/{FOLDER}: its files change too fast to be read")


def open_part(output: Folder, name: str) -> pq.ParquetFile:
    """A file of the results.

    Raises:
        PartGone: there is none of this name any more.
        PartDamaged: it is cut, empty, no Parquet file, or not of results.
        Unreadable: storage does not give it.
    """
    try:
        data = output.read(name)
    except FileNotFoundError as error:
        raise PartGone(
            f"results {output.uri}/{name}: are gone: a run has put its results together "
            "meanwhile; run the same command again"
        ) from error
    except Exception as error:  # each storage has its own kinds of failure
        trouble = explain(error, output.full_uri(name))
        raise Unreadable(f"results {output.uri}/{name}: {trouble.text}") from error
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
    except (OSError, pa.ArrowException) as error:
        raise PartDamaged(Damaged.by(output, name, len(data), error)) from error
    if why := foreign(file.schema_arrow):
        raise PartDamaged(Damaged(output, name, why))
    return file


def read_part(output: Folder, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a file of the results; raises as `open_part` does."""
    file = open_part(output, name)
    having = set(file.schema_arrow.names)
    try:
        table = file.read(None if columns is None else [c for c in columns if c in having])
    except (OSError, pa.ArrowException) as error:
        raise PartDamaged(Damaged.by(output, name, None, error)) from error
    for column in columns or ():
        if column not in having:
            kind = SCHEMA.field(column).type if column in SCHEMA.names else pa.null()
            table = table.append_column(column, pa.nulls(table.num_rows, kind))
    return table if columns is None else table.select(list(columns))


Part: TypeAlias = pa.Table | PartGone | PartDamaged


def _side_by_side(
    output: Folder, names: Sequence[str], columns: Sequence[str] | None
) -> Generator[tuple[str, Part], None, None]:
    """The files in order, some read ahead: more of small ones than of large ones."""
    left, ahead = deque(names), deque[tuple[str, Future[Part]]]()
    readers = 2 if output.is_local else READERS
    with ThreadPoolExecutor(readers, "results") as pool:
        try:
            while left or ahead:
                while left and len(ahead) <= readers:
                    name = left.popleft()
                    ahead.append((name, pool.submit(_read_or_why_not, output, name, columns)))
                name, part = ahead.popleft()
                yield name, part.result()
        finally:
            for _, part in ahead:
                part.cancel()


def _read_or_why_not(output: Folder, name: str, columns: Sequence[str] | None) -> Part:
    try:
        return read_part(output, name, columns)
    except (PartGone, PartDamaged) as error:
        return error
