"""Putting a run's small result files together while the run goes on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import pyarrow as pa

from cluster.results.parts import FOLDER, read_part
from cluster.results.schema import join_tables, to_parquet
from pipeline.errors import Unreadable
from pipeline.storage import Folder

FILES_AT_ONCE = 32
"""So many files of a level become one of the next: 10^5 files of a few rows become some 100."""
ROWS_AT_ONCE = 20_000
"""A file of so many rows is left as it is: 10^6 rows are 50 files, and one takes 20 MB."""
GRACE_S = 300.0
"""Files that were put together are removed after this time: a reader may have listed them."""


@dataclass(frozen=True)
class _Written:
    """A file of the run, with the rows of the files `first` to `last` as they were written.

    Args:
        level: how often its rows were put together.
    """

    name: str
    rows: int
    first: int
    last: int
    level: int = 0


class Merging:
    """The files of one run, for the one thread that writes them.

    The new file is written before the old ones are removed, so no row is ever missing; readers that
    see both take the rows once.
    """

    def __init__(self, output: Folder, run: str) -> None:
        self._output, self._run = output, run
        self._files: list[_Written] = []
        self._count = 0
        self._old: deque[tuple[float, str]] = deque()

    def written(self, name: str, rows: int) -> None:
        """A file was stored."""
        self._files.append(_Written(name, rows, self._count, self._count))
        self._count += 1

    def merge(self) -> int:
        """Put together what has become many, and remove what was put together before.

        What storage refuses here is tried again with later files: the rows are stored.

        Returns:
            How many files were put together.
        """
        joined = 0
        while together := self._next():
            try:
                one = self._put_together(together)
            except Exception:  # storage; or damage, which the next run names
                break
            self._files[-len(together) :] = [one]
            self._old.extend((time.monotonic(), file.name) for file in together)
            joined += len(together)
        self._remove(time.monotonic() - GRACE_S)
        return joined

    def finish(self) -> None:
        """Remove what was put together, whoever may have listed it."""
        self._remove(time.monotonic())

    def _next(self) -> list[_Written]:
        """The newest files of one level, where they are enough to be put together."""
        newest = self._files[-1:]
        alike = takewhile(
            lambda file: file.level == newest[0].level and file.rows < ROWS_AT_ONCE,
            reversed(self._files),
        )
        together = list(alike)[:FILES_AT_ONCE][::-1]
        rows = sum(file.rows for file in together)
        enough = len(together) == FILES_AT_ONCE or rows >= ROWS_AT_ONCE
        return together if enough and len(together) > 1 else []

    def _put_together(self, together: Sequence[_Written]) -> _Written:
        first, last = together[0].first, together[-1].last
        # Sorts where the files did: after the one before `first`, and before the one after `last`.
        name = f"{FOLDER}/{self._run}-{first:06d}-{last:06d}.parquet"
        tables = [self._read(file) for file in together]
        self._output.write(name, to_parquet(join_tables(tables)))
        rows = sum(file.rows for file in together)
        return _Written(name, rows, first, last, together[0].level + 1)

    def _read(self, file: _Written) -> pa.Table:
        """The rows of a file as they were written.

        Raises:
            Unreadable: it has others.
        """
        table = read_part(self._output, file.name)
        if table.num_rows != file.rows:
            raise Unreadable(
                f"results {self._output.uri}/{file.name}: has {table.num_rows} rows, and "
                f"{file.rows} were written"
            )
        return table

    def _remove(self, before: float) -> None:
        while self._old and self._old[0][0] <= before:
            try:
                self._output.remove(self._old[0][1])
            except Exception:  # tried again later; the next compaction finds it otherwise
                return
            self._old.popleft()
