"""One execution of Ray Data, whose blocks a thread takes as they are finished."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Protocol

import pyarrow as pa

TICK_S = 0.2
ENDED = "ended"


class Lease(Protocol):
    """This run's hold on its output folder."""

    def check(self) -> None:
        """Raises where another run has taken it over."""


class WaveEnded(Exception):
    """Ray ended a wave before its rows."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Execution:
    """A dataset as it is executed. Its thread ends with it, or with the connection to Ray.

    Args:
        dataset: a `ray.data.Dataset`, or a function that makes one in the thread, or None.
    """

    def __init__(self, dataset: Any) -> None:
        self._finished: queue.SimpleQueue[pa.Table | BaseException | None] = queue.SimpleQueue()
        self._left = threading.Event()
        self.thread = threading.Thread(target=self._consume, args=(dataset,), daemon=True)
        self.thread.start()

    def leave(self) -> None:
        """Have it end with the next block: nobody takes more."""
        self._left.set()

    def _consume(self, dataset: Any) -> None:
        try:
            made = dataset() if callable(dataset) else dataset
            # With one prefetched Ray Data gives a block only once it has the next one.
            how = {"batch_size": None, "batch_format": "pyarrow", "prefetch_batches": 0}
            for table in () if made is None else made.iter_batches(**how):
                if self._left.is_set():
                    break
                self._finished.put(table)
            self._finished.put(None)
        except BaseException as error:
            self._finished.put(error)

    def ticks(self) -> Iterator[pa.Table | None]:
        """What is finished, and None every `TICK_S`, until it ends.

        A block has the results of one row. Those of a tick come together: to count a table and to
        make it ready for storage takes calls for each of its columns, however few rows it has.

        Raises:
            WaveEnded: Ray did not go on.
        """
        while True:
            tables, end = self._of_a_tick()
            yield from joined(tables)
            if isinstance(end, Exception):
                raise WaveEnded(end)
            if isinstance(end, BaseException):
                raise end
            if end == ENDED:
                return
            yield None

    def _of_a_tick(self) -> tuple[list[pa.Table], BaseException | str]:
        """The blocks that are finished within `TICK_S`, and how the execution ended, if it did."""
        until = time.monotonic() + TICK_S
        tables: list[pa.Table] = []
        while (left := until - time.monotonic()) > 0:
            try:
                table = self._finished.get(timeout=left)
            except queue.Empty:
                break
            if not isinstance(table, pa.Table):
                return tables, table or ENDED
            tables.append(table)
        return tables, ""

    def so_far(self) -> tuple[list[pa.Table], BaseException | str]:
        """The blocks that are there now, and how the execution ended, if it did."""
        tables: list[pa.Table] = []
        while not self._finished.empty():
            table = self._finished.get()
            if not isinstance(table, pa.Table):
                return tables, table or ENDED
            tables.append(table)
        return tables, ""

    def ready(self) -> Iterator[pa.Table]:
        """The blocks that are there now, where no more are waited for."""
        while not self._finished.empty():
            table = self._finished.get()
            if isinstance(table, pa.Table):
                yield table


def joined(tables: Sequence[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in fewer tables: those that follow each other and have one schema are one."""
    for _, some in groupby(tables, key=lambda table: table.schema):
        yield pa.concat_tables(some)
