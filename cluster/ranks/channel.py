"""A rank's end of the socket to its owner: requests come in, answers and progress go out."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

from cluster.ranks.messages import GO_ON, Answer, Progress, numbered, split_number, to_line
from cluster.ranks.owner import CHANNEL

Handler = Mapping[type, Callable[..., Any]]
"""By the type of a request, what answers it: it takes the request's fields by name. What it returns
is the result."""

PULSE_S = 1.0
"""A rank that goes on with the same says so this often."""


class Arrived:
    """The key of a handler's entry that is called with every request as soon as it arrives.

    It runs in the thread that reads messages, so it may only start work elsewhere. It is given a
    context for that work, which reports the request as one that is worked on.
    """


class Beside:
    """The key of a handler's entry that is called after each request.

    It returns the futures of what goes on for it beside the next request; the answer waits for
    them, and where one fails, the request has failed.
    """


class Broken:
    """The key of a handler's entry that says whether this process can take no other request.

    It is asked after each request, whose result is its answer all the same.
    """


def whole(result: Any, beside: Sequence[Future[Any]]) -> Any:
    """The result of a request once all is done; places of a list may be futures."""
    for future in beside:
        future.result()
    if not isinstance(result, list):
        return result
    return [one.result() if isinstance(one, Future) else one for one in result]


class Channel:
    """Sends whole lines, from any thread; keeps what the rank is at."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lock = threading.Lock()
        self._at_work: Counter[int] = Counter()
        self._reported = 0.0
        self._went_on: SimpleQueue[int] = SimpleQueue()

    @classmethod
    def of_this_rank(cls) -> Channel:
        return cls(socket.socket(fileno=int(os.environ[CHANNEL])))

    def answer(self, number: int, answer: Answer) -> None:
        line = numbered(number, to_line(answer))
        with self._lock:
            self._socket.sendall(line)

    def progress(self, did: str) -> None:
        """Report what was done last."""
        with self._lock:
            self._report(did)

    def pulse(self) -> None:
        """Report that the same goes on; cheap enough for every layer of a model."""
        if time.monotonic() - self._reported > PULSE_S:
            with self._lock:
                self._report(None)

    @contextmanager
    def at_work(self, number: int) -> Iterator[None]:
        """Report a request as one that is worked on."""
        self.begin(number)
        try:
            yield
        finally:
            self.finish(number)

    def begin(self, number: int) -> None:
        """Report a request as one that is worked on, once more; `finish` takes one back."""
        with self._lock:
            self._at_work[number] += 1
            self._report(None)

    def finish(self, number: int) -> None:
        with self._lock:
            self._at_work[number] -= 1
            self._report(None)

    def wait_to_go_on(self, number: int) -> None:
        """Wait until all ranks have answered a request with an error; for ever where they need a
        restart."""
        while self._went_on.get() != number:
            pass

    def read(self, take: Callable[[int, bytes], None]) -> None:
        """Take the owner's lines; end this process at once when the owner is gone."""
        received = bytearray()
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except OSError:
                data = b""
            if not data:
                os._exit(1)
            received += data
            *lines, received = received.split(b"\n")
            for line in lines:
                number, text = split_number(bytes(line))
                if text == GO_ON:
                    self._went_on.put(number)
                else:
                    take(number, text)

    def _report(self, did: str | None) -> None:
        self._reported = time.monotonic()
        at_work = sorted(+self._at_work)
        self._socket.sendall(numbered(0, to_line(Progress(did, at_work))))
