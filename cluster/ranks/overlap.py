"""What a rank does beside the work of its accelerator: read the next video, finish edits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

T = TypeVar("T")

BESIDE_AT_ONCE = 4
"""So many decoded clips may be written, or wait for it: by default all edits of a lockstep. Each
takes 0.2 GB, or 1 GB at 81 frames of 768x1360."""


class Overlap:
    """One thread that reads ahead and one that finishes; neither touches the accelerator.

    The owner has two requests under way at most, so at most one is read ahead.
    """

    def __init__(self) -> None:
        self._reader = ThreadPoolExecutor(1, "reads ahead")
        self._finisher = ThreadPoolExecutor(1, "beside")
        self._room = threading.Semaphore(BESIDE_AT_ONCE)
        self._lock = threading.Lock()
        self._ahead: deque[tuple[Hashable, Future[Any]]] = deque()
        self._begun: list[Future[Any]] = []

    def read_ahead(
        self,
        key: Hashable,
        read: Callable[[], object],
        at_work: AbstractContextManager[None] | None = None,
    ) -> None:
        """Begin what `read` with the same key is going to ask for.

        Args:
            at_work: a context for the reading.
        """

        def work() -> object:
            with at_work or nullcontext():
                return read()

        with self._lock:  # this is called by the thread that hears the owner
            self._ahead.append((key, self._reader.submit(work)))

    def read(self, key: Hashable, read: Callable[[], T]) -> T:
        """What was read ahead, or is read now. Raises what reading raises."""
        with self._lock:
            ahead = next((one for one in self._ahead if one[0] == key), None)
            if ahead is not None:
                self._ahead.remove(ahead)
        if ahead is None:
            return read()
        future: Future[T] = ahead[1]
        return future.result()

    def beside(self, work: Callable[[], T]) -> Future[T]:
        """Do something that needs no accelerator and no other rank beside the next work.

        The answer to the request waits for it, and where it raises, the request fails. All is done
        in the order of the calls, which wait while `BESIDE_AT_ONCE` are not done.
        """
        self._room.acquire()
        future = self._finisher.submit(work)
        future.add_done_callback(lambda _: self._room.release())
        self._begun.append(future)
        return future

    def begun(self) -> list[Future[Any]]:
        """What `beside` was given since the last call."""
        begun, self._begun = self._begun, []
        return begun
