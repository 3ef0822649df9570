"""Ctrl-C and SIGTERM end a command in order, and a second one ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

BY_SIGNAL = 128
"""An exit status above it has the number of a signal: 130 after Ctrl-C, 143 after SIGTERM."""


MESSAGE = "stopped; run the same command again to go on"


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end."""


@dataclass
class Stop:
    """The signal that came, if one did."""

    number: int | None = None

    @property
    def status(self) -> int:
        return BY_SIGNAL + (self.number or signal.SIGINT)


@contextmanager
def stops_by_signal() -> Iterator[Stop]:
    """Has SIGINT and SIGTERM raise `Stopped`, once: a second one ends the process at once.

    The handlers that were there are put back, but not after a signal: what is left to do then is
    to end, and that may take seconds too. Ray's processes end with this one, however it ends.
    """
    stop = Stop()

    def handle(number: int, frame: object) -> NoReturn:
        if stop.number:
            os._exit(BY_SIGNAL + number)
        stop.number = number
        sys.unraisablehook = partial(_unraisable, stop)
        raise Stopped

    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        if not stop.number:
            for number, handler in before.items():
                signal.signal(number, handler)


def _unraisable(stop: Stop, what: sys.UnraisableHookArgs) -> None:
    """Keeps quiet about what was interrupted, and ends where Python would lose the signal itself.

    A signal that comes in a destructor raises in it, and nothing above it learns of that.
    """
    if isinstance(what.exc_value, Stopped):
        print(MESSAGE, file=sys.stderr, flush=True)
        os._exit(stop.status)
