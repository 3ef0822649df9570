"""One execution of Ray Data, whose blocks a thread takes as they are finished."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

TICK_S = 0.2


class WaveEnded(Exception):
    """Ray ended a wave before its rows."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Execution:
    """A dataset as it is executed. Its thread ends with it, or with the connection to Ray.

    Args:
        dataset: a `ray.data.Dataset`.
    """

    def __init__(self, dataset: Any) -> None:
        self._finished: queue.SimpleQueue[pa.Table | BaseException | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._consume, args=(dataset,), daemon=True)
        self.thread.start()

    def _consume(self, dataset: Any) -> None:
        try:
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                self._finished.put(table)
            self._finished.put(None)
        except BaseException as error:
            self._finished.put(error)

    def ticks(self) -> Iterator[pa.Table | None]:
        """Blocks as they come, until it ends, and None every `TICK_S` at least.

        Raises:
            WaveEnded: Ray did not go on.
        """
        shown = time.monotonic()
        while True:
            left = max(0.0, shown + TICK_S - time.monotonic())
            try:
                table = self._finished.get(timeout=left)
            except queue.Empty:
                shown = time.monotonic()
                yield None
                continue
            if table is None:
                return
            if isinstance(table, Exception):
                raise WaveEnded(table)
            if isinstance(table, BaseException):
                raise table
            yield table
            if time.monotonic() - shown >= TICK_S:
                shown = time.monotonic()
                yield None

    def ready(self) -> Iterator[pa.Table]:
        """The blocks that are there now, where no more are waited for."""
        while not self._finished.empty():
            table = self._finished.get()
            if isinstance(table, pa.Table):
                yield table
