"""The heartbeat of a run: `<output>/status.json`, written by a thread; and its ear for `stop`.

It only informs. Storage that refuses it, is full or away costs the run nothing, and the next beat
is tried all the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cluster.output.lease import Lease, LeaseLost, holder_of
from jobs.status import request
from jobs.status.record import NAME, WAITING, Ending
from jobs.status.request import StopRequest, request_in
from jobs.status.state import RunState
from pipeline.storage import Folder

BEAT_S = 10.0
"""Between two beats where nothing changes."""
SOONEST_S = 1.0
"""Between two beats at least: phases may follow each other quickly."""
LAST_S = 5.0
"""The last beat may take so long; then the run ends without it."""


class Heartbeat:
    """Writes how a run is doing, and hears of a request to stop it.

    Until the run holds the output folder the file is that of the run which does. So before, it is
    written only where nobody holds the folder and the run is at it for long; while the run waits
    for the folder, its record is in a file of its own.

    Args:
        output: the folder of the run.
        state: what is written.
        on_request: called once, in the thread, where somebody asks this run to end.
    """

    def __init__(
        self, output: Folder, state: RunState, on_request: Callable[[StopRequest], None]
    ) -> None:
        self.output, self.state, self.on_request = output, state, on_request
        self._lease: Lease | None = None
        self._written: set[str] = set()
        self._asked = self._lost = self._left = False
        self._wake, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    @contextmanager
    def beats(self) -> Iterator[None]:
        """Beat for the length of a block; the last beat says what is known at its end."""
        self._thread.start()
        try:
            yield
        finally:
            self._end()

    @contextmanager
    def of(self, lease: Lease) -> Iterator[None]:
        """The run holds its output folder for the length of a block: from here on it is written.

        The last beat comes before the folder is left to others.
        """
        self._lease = lease
        self.state.put(run=lease.run)
        self.state.on_change = self._wake.set
        self._wake.set()
        try:
            yield
        finally:
            self._end()

    def ends(self, ending: Ending, exit_status: int, error: str | None = None) -> None:
        """How the run ended, before the block of `beats` does."""
        if self.state.status().ending is None:
            self.state.ends(ending, exit_status, error)

    def _end(self) -> None:
        if self._left:
            return  # it has had its time
        self._ending.set()
        self._wake.set()
        self._thread.join(LAST_S)
        self._left = True  # a beat that comes later would overwrite that of the next run

    def _beat_on(self) -> None:
        while True:
            if not self._ending.is_set():
                self._wake.wait(BEAT_S)
            self._wake.clear()
            last = self._ending.is_set()
            began = time.monotonic()
            with suppress(Exception):  # storage may be away: see above
                self._beat(last)
            if last or self._lost:
                return
            with suppress(Exception):
                self._listen()
            self._ending.wait(max(0.0, began + SOONEST_S - time.monotonic()))

    def _beat(self, last: bool) -> None:
        try:
            name = self._name(last)
        except LeaseLost:
            self._lost = True  # the folder and this file are another run's
            return
        if name is None or self._left:
            return
        self.output.write(name, self.state.status().as_json())
        self._written.add(name)
        if name == NAME or last:
            self._remove(WAITING)
        if last:
            self._remove(request.NAME if self._asked else "")

    def _name(self, last: bool) -> str | None:
        """The file that may be written now; None for none.

        Raises:
            LeaseLost: another run has the folder.
        """
        if self._lease is not None:
            self._lease.check()
            return NAME
        if last and not self._written:
            return None
        if holder_of(self.output) is None:
            return NAME
        if last:
            self._remove(WAITING)
            return None
        return WAITING if self.state.status().state == "waiting for the lease" else None

    def _remove(self, name: str) -> None:
        if name in self._written or name == request.NAME:
            self.output.remove(name)
            self._written.discard(name)

    def _listen(self) -> None:
        if self._lease is None or self._asked:
            return
        found = request_in(self.output)
        if found and found.run == self._lease.run and not self._ending.is_set():
            self._asked = True
            self.on_request(found)
