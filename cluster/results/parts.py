"""The files of the results: listed, read side by side, and looked at for damage.

A run adds files and puts small ones together while it goes on. So a reader may find that a file of
its list is gone: its rows are then in a file that the list of now has. A reader that lists again
reads some rows twice, which the rule of the newest row (`newest.py`) takes for one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.results.damaged import Damaged, PartDamaged, warn
from cluster.results.schema import SCHEMA, foreign, names_of_today, to_parquet
from pipeline.errors import NoMemory, Unreadable
from pipeline.storage import Folder, explain

FOLDER = "results"
READERS = 16
"""Files that are fetched side by side: over a network each takes some 50 ms, however small."""
AHEAD_BYTES = 64 << 20
"""Of the rows of files that are read ahead, in memory. One file is read whatever its size."""
LISTINGS = 20
"""A reader that meets so many lists with files that are gone by then gives up."""


class PartGone(Unreadable):
    """A file of the results was put together with others since the folder was listed."""


def part_names(output: Folder) -> list[str]:
    """The files of the results, oldest run first."""
    return [name for name in output.list(FOLDER) if _is_part(name)]


def _is_part(name: str) -> bool:
    return name.endswith(".parquet") and name.count("/") == 1 and "/." not in name


def read_parts(
    output: Folder,
    columns: Sequence[str] | None = None,
    on_damaged: Callable[[Damaged], None] = warn,
    without: Collection[str] = (),
) -> Generator[tuple[str, pa.Table], None, None]:
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
        listed = (one for one in output.sizes(FOLDER) if _is_part(one[0]))
        files = sorted((name, size) for name, size in listed if name not in seen)
        gone = False
        with closing(_side_by_side(output, files, columns)) as parts:
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
    except MemoryError as error:
        raise NoMemory(f"results {output.uri}/{name}", error) from error
    except Exception as error:  # each storage has its own kinds of failure
        trouble = explain(error, output.full_uri(name))
        raise Unreadable(f"results {output.uri}/{name}: {trouble.text}") from error
    try:
        file = _with_names_of_today(pq.ParquetFile(pa.BufferReader(data)))
    except MemoryError as error:  # Arrow's is an ArrowException too
        raise NoMemory(f"results {output.uri}/{name}", error) from error
    except (OSError, pa.ArrowException) as error:
        raise PartDamaged(Damaged.by(output, name, len(data), error)) from error
    if why := foreign(file.schema_arrow):
        raise PartDamaged(Damaged(output, name, why))
    return file


def _with_names_of_today(file: pq.ParquetFile) -> pq.ParquetFile:
    names = names_of_today(file.schema_arrow)
    if names == file.schema_arrow.names:
        return file
    return pq.ParquetFile(pa.BufferReader(to_parquet(file.read().rename_columns(names))))


def read_part(output: Folder, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a file of the results; raises as `open_part` does."""
    file = open_part(output, name)
    having = set(file.schema_arrow.names)
    try:
        table = file.read(None if columns is None else [c for c in columns if c in having])
    except MemoryError as error:
        raise NoMemory(f"results {output.uri}/{name}", error) from error
    except (OSError, pa.ArrowException) as error:
        raise PartDamaged(Damaged.by(output, name, None, error)) from error
    for column in columns or ():
        if column not in having:
            kind = SCHEMA.field(column).type if column in SCHEMA.names else pa.null()
            table = table.append_column(column, pa.nulls(table.num_rows, kind))
    return table if columns is None else table.select(list(columns))


Part: TypeAlias = pa.Table | PartGone | PartDamaged


def _side_by_side(
    output: Folder, files: Sequence[tuple[str, int]], columns: Sequence[str] | None
) -> Generator[tuple[str, Part], None, None]:
    """The files in order, some read ahead: many small ones, or few large ones.

    How much larger rows are than their file is known once one was read, so the first is read alone.

    Args:
        files: the name and the bytes of each.
    """
    left, ahead = deque(files), deque[tuple[str, int, Future[Part]]]()
    readers = 2 if output.is_local else READERS
    growth = math.inf  # bytes of rows for each byte of a file, the most so far
    with ThreadPoolExecutor(readers, "results") as pool:
        try:
            while left or ahead:
                waiting = sum(size for _, size, _ in ahead)
                while left and len(ahead) <= readers:
                    name, size = left[0]
                    waiting += size
                    if ahead and waiting * growth > AHEAD_BYTES:
                        break
                    ahead.append((name, size, pool.submit(_read_or_why_not, output, name, columns)))
                    left.popleft()
                name, size, future = ahead.popleft()
                part = future.result()
                if isinstance(part, pa.Table) and size:
                    seen = part.nbytes / size
                    growth = seen if math.isinf(growth) else max(growth, seen)
                yield name, part
        finally:
            for *_, future in ahead:
                future.cancel()


def _read_or_why_not(output: Folder, name: str, columns: Sequence[str] | None) -> Part:
    try:
        return read_part(output, name, columns)
    except (PartGone, PartDamaged) as error:
        return error
