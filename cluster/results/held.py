"""Result rows that wait: some in memory, the rest on this machine's disk.

Edits may be made faster than they are scored, for days: their rows would fill the driver's memory.
"""

from __future__ import annotations

import tempfile
from collections import deque
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.results.schema import join_tables, to_parquet
from pipeline.redaction import log_error

FILE_ROWS = 4_000
IN_MEMORY = 40_000
"""Rows; some 60 MB, with columns of the manifest beside those of results perhaps more."""


class Held:
    """Rows in the order in which they came. Files go with it, or with the process that ends."""

    def __init__(self) -> None:
        self._parts: deque[tuple[pa.Table | Path, int]] = deque()
        self._last: list[pa.Table] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0
        self._in_memory = self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def add(self, table: pa.Table) -> None:
        """Take rows."""
        self._rows += table.num_rows
        self._in_memory += table.num_rows
        self._last.append(table)
        rows = sum(one.num_rows for one in self._last)
        if rows < FILE_ROWS:
            return
        joined, self._last = join_tables(self._last), []
        part: pa.Table | Path = joined
        if self._in_memory > IN_MEMORY:
            try:
                part = self._write(joined)
                self._in_memory -= rows
            except OSError as error:  # no room there: memory has some yet
                log_error(error)
        self._parts.append((part, rows))

    def take(self, most: int) -> pa.Table | None:
        """The first rows, at most so many; None where there are none."""
        tables: list[pa.Table] = []
        while most > 0 and (self._parts or self._last):
            table = self._first()
            if table.num_rows > most:
                rest = table.slice(most)
                self._parts.appendleft((rest, rest.num_rows))
                table = table.slice(0, most)
            self._in_memory -= table.num_rows
            self._rows -= table.num_rows
            most -= table.num_rows
            tables.append(table)
        return join_tables(tables) if tables else None

    def _first(self) -> pa.Table:
        if not self._parts:
            last, self._last = join_tables(self._last), []
            return last
        part, rows = self._parts.popleft()
        if not isinstance(part, Path):
            return part
        table = pq.read_table(part, memory_map=False)
        part.unlink()
        self._in_memory += rows
        return table

    def _write(self, table: pa.Table) -> Path:
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="retake-unscored-")
        self._files += 1
        path = Path(self._folder.name, f"{self._files:06d}.parquet")
        path.write_bytes(to_parquet(table))
        return path
