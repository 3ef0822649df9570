"""What the footers of a manifest's Parquet files tell; no row is read."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.manifest import NOTHING, Amount
from jobs.manifest.conversion.videos import VIDEO_EXTENSIONS
from jobs.manifest.files import TABLES, Found, FoundFile
from pipeline.storage import explain, open_file

EXACT_IN_FLOAT = 2**53
"""Up to here a float of 64 bits holds every whole number."""


@dataclass(frozen=True)
class Footer:
    """What the end of a Parquet file tells of it.

    Args:
        schema: a `pyarrow.Schema`; None where the file is damaged.
        amount: of rows and bytes.
        edits: how many have a prompt; None where the writer left out the statistics.
        wide: the columns, and the fields in them, with whole numbers that no float may hold.
        single: the columns that have the same value in all rows, and it.
        damage: why it cannot be read.
    """

    file: FoundFile
    schema: Any = None
    amount: Amount = NOTHING
    edits: int | None = None
    wide: frozenset[tuple[str, str]] = frozenset()
    single: tuple[tuple[str, Any], ...] = ()
    damage: str | None = None

    @property
    def uri(self) -> str:
        return self.file.uri

    @property
    def rows(self) -> int:
        return self.amount.rows


def read_footers(found: Found) -> list[Footer]:
    """The footers of a manifest's files, in order."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(_read_footer, found.files))


def _read_footer(found: FoundFile) -> Footer:
    head, uri = b"", found.uri
    try:
        with open_file(uri) as file:
            head = file.read(16)
            file.seek(0)
            parquet = pq.ParquetFile(file)
            columns = list(_columns(parquet.metadata))
            return Footer(
                found,
                parquet.schema_arrow,
                Amount.of(file, parquet),
                _count_edits(columns),
                _wide(columns),
                _single(columns),
            )
    except MemoryError:  # Arrow's is an ArrowException too, and no damage
        raise
    except pa.ArrowException as error:
        damage = f"the Parquet file is truncated or damaged ({error}); copy it again"
        if not head:
            damage = "the file is empty (0 bytes); expected Parquet"
        elif not head.startswith(b"PAR1"):
            damage = f"the file is not Parquet: {_what_it_is(uri, head)}"
    except Exception as error:  # each storage has its own kinds of failure
        damage = explain(error, uri).text
    return Footer(found, damage=damage)


def _what_it_is(uri: str, head: bytes) -> str:
    name = uri.split("::", maxsplit=1)[0].split("?", maxsplit=1)[0].lower()
    if name.endswith((".yaml", ".yml")):
        return "it is YAML, as a job file is; expected the Parquet file that a job file names"
    if name.endswith(VIDEO_EXTENSIONS):
        command = f"retake manifest {uri} manifest.parquet --prompt TEXT"
        return f"it is a video; `{command}` makes a manifest"
    if name.endswith(TABLES):
        return f"`retake manifest {uri} manifest.parquet` makes a manifest of it"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page; expected the address that the file itself is downloaded from"
    return (
        f"it begins with {head[:4]!r}; `retake manifest` makes a manifest from CSV, JSON or a "
        "folder of videos"
    )


def _columns(metadata: pq.FileMetaData) -> Iterator[tuple[str, str, list[Any]]]:
    """The first and the last name of each column's path, and what each row group has of it."""
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    for index in range(metadata.num_columns):
        chunks = [group.column(index) for group in groups]
        if chunks:
            path = chunks[0].path_in_schema.split(".")  # edits.list.element.prompt
            yield path[0], path[-1], chunks


def _count_edits(columns: list[tuple[str, str, list[Any]]]) -> int | None:
    """The prompts that are not null, from the statistics of their column."""
    total = 0
    for first, last, chunks in columns:
        if (first, last) == ("edits", "prompt"):
            if any(chunk.statistics is None for chunk in chunks):
                return None
            total += sum(chunk.statistics.num_values for chunk in chunks)
    return total


def _wide(columns: list[tuple[str, str, list[Any]]]) -> frozenset[tuple[str, str]]:
    return frozenset(
        (first, last)
        for first, last, chunks in columns
        if chunks[0].physical_type == "INT64" and any(map(_may_be_wide, chunks))
    )


def _may_be_wide(chunk: Any) -> bool:
    known = chunk.statistics
    if known is None:
        return True
    if not known.has_min_max:
        return bool(known.num_values)
    return any(abs(end) > EXACT_IN_FLOAT for end in (known.min_raw, known.max_raw))


def _single(columns: list[tuple[str, str, list[Any]]]) -> tuple[tuple[str, Any], ...]:
    found = []
    for first, last, chunks in columns:
        known = [chunk.statistics for chunk in chunks]
        if first != last or any(k is None or not k.has_min_max or k.null_count for k in known):
            continue
        with suppress(ValueError, OverflowError):  # Python cannot hold it, as the year 10000
            values = {value for k in known for value in (k.min, k.max)}
            found += [(first, value) for value in values if len(values) == 1]
    return tuple(found)
