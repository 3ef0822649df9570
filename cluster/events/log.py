"""The writer of a process' events: a thread that stores them, whatever storage does.

A log only informs. So nothing here raises, and nobody waits: events are kept in memory for the
thread, and where storage takes none for long, the oldest are dropped and counted.

A local file is appended to. Object storage cannot append: there a segment is written anew each time
with what has come, at most every `FLUSH_S`. At `SEGMENT_BYTES` the next segment begins, which
bounds what is sent twice: a process that writes a line a second sends 0.5 MB in five seconds at
most, and makes an object of each MB, some thousand events.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
import uuid
from collections import deque
from typing import Any

from cluster.events.record import Event, Happened, Process, now
from cluster.events.stored import FOLDER, SUFFIX
from pipeline.redaction import log, log_error
from pipeline.storage import Folder, explain

FLUSH_S = 5.0
"""Object storage gets at most one write in this time. The first event after a pause is stored at
once: who has a row a minute keeps the events of its end even if it is killed then."""
GATHER_S = 0.2
"""Events that come together are written together."""
TROUBLE_S = 30.0
"""After a write that failed."""
SEGMENT_BYTES = 1 << 20
LOCAL_SEGMENT_BYTES = 64 << 20
"""Of a file that can be appended to."""
MOST_BYTES = 4 << 20
"""Events that wait for storage take so much memory."""
CLOSE_S = 3.0
"""Whoever closes a log waits so long at most, and not at all where storage is in trouble."""


class EventLog:
    """The log of one process. Its thread starts with the first event.

    Args:
        output: the output folder.
        run: the run's name.
        process: what the process is.
        always: fields of all its events.

    Attributes:
        name: of its segments, relative to the output folder, without their number.
    """

    def __init__(self, output: Folder, run: str, process: Process, **always: Any) -> None:
        self._output, self._run = output, run
        host, pid = socket.gethostname(), os.getpid()
        self._always = {"process": process, "host": host, "pid": pid, **always}
        # The last part tells logs apart whose host and process have the same names, as in pods.
        parts = [process, always.get("group"), re.sub(r"[^\w-]+", "-", host), str(pid)]
        parts += [uuid.uuid4().hex[:6]]
        self.name = f"{FOLDER}/{run}/{'-'.join(filter(None, parts))}"
        self._changed = threading.Condition()
        self._waiting: deque[Event] = deque()
        self._bytes = self._dropped = 0
        self._closing = self._hurried = False
        self._thread: threading.Thread | None = None
        # Of the thread alone:
        self._number, self._size, self._segment = 0, 0, b""
        self._unsaved = b""
        self._next_at = 0.0
        self._trouble = False

    def __call__(self, event: Happened, /, **about: Any) -> None:
        """Take an event: see `cluster.events.record.Note`."""
        try:
            values = {"level": event.level, **self._always, **about}
            self._take(Event(time=now(), event=event.value, run=self._run, **values))
        except Exception as error:  # it only informs
            log_error(error)

    def close(self) -> None:
        """Store what waits, if storage takes it soon, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None and not self._trouble:
            self._thread.join(CLOSE_S)

    def hurry(self) -> None:
        """Have a local file get what waits at once: this process may be ended any moment. Nobody
        waits for it."""
        with self._changed:
            self._hurried = self._output.is_local
            self._changed.notify_all()

    def _take(self, event: Event) -> None:
        with self._changed:
            self._waiting.append(event)
            self._bytes += event.size()
            while self._bytes > MOST_BYTES and len(self._waiting) > 1:
                self._bytes -= self._waiting.popleft().size()
                self._dropped += 1
            if self._thread is None or not (self._thread.is_alive() or self._closing):
                self._thread = threading.Thread(target=self._work, name="events", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _work(self) -> None:
        while not self._wait():
            self._store()
        while (self._waiting or self._unsaved) and self._store():
            pass

    def _wait(self) -> bool:
        """Wait until events are to be stored, or the log is closed; says whether it is."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._unsaved or self._closing)
            left = max(self._next_at - time.monotonic(), GATHER_S)
            self._changed.wait_for(lambda: self._closing or self._hurried, left)
            self._hurried = False
            return self._closing

    def _store(self) -> bool:
        """Try to store what waits; says whether storage took it."""
        self._unsaved = self._unsaved or self._taken()
        pause_s = GATHER_S if self._output.is_local else FLUSH_S
        try:
            self._write(self._unsaved)
            self._unsaved, self._trouble = b"", False
        except Exception as error:  # each storage has its own kinds of failure
            pause_s = TROUBLE_S
            if not self._trouble:
                where = f"{self._output.uri}/{self.name}"
                log(f"events cannot be stored: {explain(error, where, 'written').text}")
            self._trouble = True
        self._next_at = time.monotonic() + pause_s
        return not self._trouble

    def _taken(self) -> bytes:
        """The lines of all events that wait, which wait no more."""
        with self._changed:
            events, self._waiting = self._waiting, deque()
            dropped, self._dropped, self._bytes = self._dropped, 0, 0
        if dropped:
            about = {**self._always, "counts": {"events": dropped}}
            kind = Happened.EVENTS_DROPPED
            first = Event(now(), kind.level, kind.value, self._run, **about)
            events.appendleft(first)
        return b"".join(event.to_line() for event in events)

    def _write(self, data: bytes) -> None:
        name = f"{self.name}-{self._number:04d}{SUFFIX}"
        if self._output.is_local:
            self._output.write_at(name, self._size, data)
            most = LOCAL_SEGMENT_BYTES
        else:
            self._output.write(name, self._segment + data)
            self._segment += data
            most = SEGMENT_BYTES
        self._size += len(data)
        if self._size >= most:
            self._number, self._size, self._segment = self._number + 1, 0, b""
