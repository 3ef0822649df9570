"""What the owner of a rank group exports: how long it exists, and how long it works.

A thread counts it every few seconds, also while a request takes hours. The way of a row to its
group is a `with` longer, and no function: the frame of a context manager is not below its block.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from cluster.metrics import declared
from cluster.metrics.recorder import Recorder

EVERY_S = 2.0


class Started(Protocol):
    """A group that counts how often its ranks were started."""

    starts: int


class AtWork:
    """Seconds in which at least one thread is in here."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._since = self._seen = time.monotonic()
        self._busy_s = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._since = time.monotonic()
            self._inside += 1

    def __exit__(self, *_: Any) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._busy_s += time.monotonic() - self._since

    def taken(self) -> tuple[float, float]:
        """Seconds since it was made or last asked, and those of them at work."""
        with self._lock:
            now = time.monotonic()
            seconds, self._seen = now - self._seen, now
            busy, self._busy_s = self._busy_s, 0.0
            if self._inside:
                busy += now - self._since
                self._since = now
            return seconds, busy


class GroupMetrics:
    """The metrics of one group, from now on and as long as this object is there.

    Args:
        run: names the run.
        stage: of the group.
        group: whose starts are counted.
        gpus: that it reserves.
    """

    def __init__(self, run: str, stage: str, group: Started, gpus: int) -> None:
        self._work, self._counting = AtWork(), threading.Lock()
        self._record, self._stage = Recorder(run), stage
        self._group, self._gpus, self._restarts = group, gpus, 0
        self._add(0.0, 0.0, 0)
        threading.Thread(target=_count, args=(weakref.ref(self),), daemon=True).start()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While the group works on a request."""
        try:
            with self._work:
                yield
        finally:
            self.count()  # its process may be ended before the thread counts again

    def count(self) -> None:
        """Export what was counted since the last call. It only informs: no row fails by it."""
        with suppress(Exception), self._counting:
            seconds, busy = self._work.taken()
            restarts = max(0, self._group.starts - 1)
            self._add(seconds, busy, restarts - self._restarts)
            self._restarts = restarts

    def _add(self, seconds: float, busy: float, restarts: int) -> None:
        add = self._record.add
        add(declared.GROUP_SECONDS, seconds, stage=self._stage)
        add(declared.BUSY_SECONDS, busy, stage=self._stage)
        add(declared.RESERVED, seconds * self._gpus, stage=self._stage)
        add(declared.RESTARTS, restarts, stage=self._stage)


def _count(metrics: weakref.ref[GroupMetrics]) -> None:
    """The thread."""
    while True:
        time.sleep(EVERY_S)
        if (there := metrics()) is None:
            return
        there.count()
        del there
