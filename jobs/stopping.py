"""Ctrl-C, SIGTERM and a closed terminal end a command in order; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

BY_SIGNAL = 128
"""An exit status above it has the number of a signal: 130 after Ctrl-C, 143 after SIGTERM."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN_S = 0.5
"""What comes so soon after a signal is the same one: launchers pass on what a terminal has sent to
all of its processes already."""

END_S = 15.0
"""A command that a signal interrupts, or that has drained, ends within this time or is ended: the
main thread may be in native code that does not hear of the signal, as while Ray starts."""

MESSAGE = "stopped; run the same command again to go on"
ENDED = "ended at once; run the same command again to go on"
DRAINING = "stopping: running work has {grace_s:g} s to end; a second Ctrl-C ends it at once"


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end."""


@dataclass
class Stop:
    """The signal that came, if one did.

    Args:
        region: what ends by itself where it is asked to, while it runs.
        first: when the signal came, by the monotonic clock.
        ended: set when the command has ended.
    """

    number: int | None = None
    region: Region | None = None
    first: float | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def status(self) -> int:
        return BY_SIGNAL + (self.number or signal.SIGINT)


@dataclass
class Region:
    """Work that ends by itself where it is asked to, from `begin` on.

    Args:
        grace_s: that it says it needs.
        on_stop: called at the signal, in another thread.
        command: whose signals these are; None where nothing listens to them.
        stop: set by a signal.
    """

    grace_s: float
    on_stop: Callable[[], None]
    command: Stop | None
    stop: threading.Event = field(default_factory=threading.Event)

    def begin(self) -> None:
        """From here on the work looks at `stop`; before, a signal raises `Stopped` as elsewhere."""
        if self.command:
            self.command.region = self


_commands: list[Stop] = []
"""The command that this process runs."""


@contextmanager
def stops_by_signal() -> Iterator[Stop]:
    """Has signals raise `Stopped` in the main thread, once: a second one ends the process at once.

    Inside `drains` the first one only sets an event. A thread hears of signals as soon as they
    come: the main thread may be in native code that ends late or never.

    The handlers that were there are put back, but not after a signal: what is left to do then is
    to end, and that may take seconds too.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return
    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [one for one in SIGNALS if not (nohup and one == signal.SIGHUP)]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {number: signal.signal(number, partial(_handle, stop)) for number in numbers}
    fd_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(stop, reader), name="signals", daemon=True)
    thread.start()
    _commands.append(stop)
    try:
        yield stop
    finally:
        _commands.remove(stop)
        stop.ended.set()
        if not stop.number:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(fd_before)
            os.close(writer)
            thread.join()


@contextmanager
def drains(grace_s: float, on_stop: Callable[[], None] = lambda: None) -> Iterator[Region]:
    """A block that ends by itself soon after `stop` is set, once it has begun: a signal sets it.

    Without `stops_by_signal` around it (from Python, or in another thread) nothing sets it.

    Args:
        grace_s: how soon, for the message.
        on_stop: called at the signal, in another thread.

    Raises:
        Stopped: at the block's end, after a signal.
    """
    listens = _commands and threading.current_thread() is threading.main_thread()
    region = Region(grace_s, on_stop, _commands[-1] if listens else None)
    try:
        yield region
    finally:
        if region.command:
            region.command.region = None
            if region.command.number:
                _end_soon(region.command)
    if region.command and region.command.number:
        raise Stopped


def ask_to_stop(region: Region | None) -> None:
    """Do what SIGTERM does, in any thread; nothing where a signal has come already.

    Args:
        region: set where no command listens to signals, as in a notebook: its work ends in order.
    """
    if not _commands:
        if region:
            region.stop.set()
            with suppress(Exception):  # it only informs
                region.on_stop()
    elif _commands[-1].number is None:
        os.kill(os.getpid(), signal.SIGTERM)


def status_of_a_stop() -> int:
    """The exit status of a command that a signal ended."""
    return _commands[-1].status if _commands else BY_SIGNAL + signal.SIGTERM


def _in_fork() -> None:
    """A fork has the pipe of this process: a signal to it is none to this one."""
    if _commands:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_in_fork)


def _handle(stop: Stop, number: int, frame: object) -> None:
    """In the main thread, as soon as it runs Python code."""
    if stop.number:
        return  # `_listen` looks at what comes after the first
    stop.number = number
    sys.unraisablehook = partial(_unraisable, stop)
    if stop.region is None:
        raise Stopped


def _listen(stop: Stop, reader: int) -> None:
    """In a thread of its own: every signal is a byte in the pipe."""
    while numbers := os.read(reader, 64):
        for number in numbers:
            if number not in SIGNALS:
                continue
            if stop.first is None:
                stop.first = time.monotonic()
                _first(stop)
            elif time.monotonic() - stop.first > AGAIN_S:
                end_at_once(BY_SIGNAL + number, ENDED)
    os.close(reader)


def _first(stop: Stop) -> None:
    region = stop.region
    if region is None:
        _end_soon(stop)
        return
    region.stop.set()
    _say(DRAINING.format(grace_s=region.grace_s))
    with suppress(Exception):  # it only informs
        region.on_stop()


def _end_soon(stop: Stop) -> None:
    """End the process if the command does not."""

    def watch() -> None:
        if not stop.ended.wait(END_S):
            end_at_once(stop.status, MESSAGE)

    threading.Thread(target=watch, name="end", daemon=True).start()


_ending = threading.Lock()


def end_at_once(status: int, message: str) -> None:
    """End this process and all that it started, and what those started."""
    if _ending.acquire(blocking=False):  # another thread may be at it
        _say(message)
    with suppress(Exception):
        for pid in _descendants(os.getpid()):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
    os._exit(status)


def _descendants(root: int) -> list[int]:
    """The processes below a process, parents first; none where the system does not list them."""
    children: dict[int, list[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            text = stat.read_text()  # `pid (name) state parent ...`, and a name may hold anything
            children[int(text.rpartition(")")[2].split()[1])].append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found.extend(children[pid])
    return found[1:]


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # the terminal may be gone
        print(text, file=sys.stderr, flush=True)


def _unraisable(stop: Stop, what: sys.UnraisableHookArgs) -> None:
    """Keeps quiet about what was interrupted, and ends where Python would lose the signal itself.

    A signal that comes in a destructor raises in it, and nothing above it learns of that.
    """
    if isinstance(what.exc_value, Stopped):
        end_at_once(stop.status, MESSAGE)
