"""Who holds an output folder: the record in its lease, and whether that process still lives."""

from __future__ import annotations

import getpass
import json
import os
import socket
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.storage import from_json

STOPPED_KEPT = 50
"""So many of the runs that a signal stopped stay known."""


@dataclass(frozen=True)
class Holder:
    """A process that writes to an output folder.

    Args:
        run: its name, as in the results; empty where a command makes no results.
        command: what it is, as `retake run`.
        host, pid, user: where it runs, and whose it is.
        boot, pid_space, started: of its machine, of its container, and of the process: they tell
            whether a process of this number is the same one.
        since: when it took the folder, UTC.
        token: unlike that of any other.
        renewed: when it last said that it lives, UTC by its own clock.
        stopping: a signal asked it to end.
        released: it ended in order, and left the folder to others.
        stopped: earlier runs that a signal stopped.
        latest: the newest name of a run so far, this one's counted.
    """

    run: str
    command: str
    host: str
    pid: int
    user: str
    boot: str
    pid_space: str
    started: str
    since: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    renewed: str = ""
    stopping: bool = False
    released: bool = False
    stopped: tuple[str, ...] = ()
    latest: str = ""

    @classmethod
    def this_process(
        cls, run: str, command: str, stopped: Sequence[str], latest: str = ""
    ) -> Holder:
        return cls(
            run=run,
            command=command,
            host=socket.gethostname(),
            pid=os.getpid(),
            user=user_name(),
            boot=_boot(),
            pid_space=_pid_space(),
            started=_started(os.getpid()),
            since=now(),
            renewed=now(),
            stopped=tuple(stopped[-STOPPED_KEPT:]),
            latest=latest,
        )

    @classmethod
    def parse(cls, data: bytes) -> Holder | None:
        """The record in a lease; None where it is damaged or of another version's making."""
        try:
            values = {"latest": ""} | from_json(data)  # which the version before did not write
            known = {one.name: values[one.name] for one in fields(cls)}
            known["stopped"] = tuple(map(str, known["stopped"]))
            datetime.fromisoformat(known["renewed"])
            datetime.fromisoformat(known["since"])
            return cls(**known)
        except (ValueError, TypeError, KeyError):
            return None

    def as_json(self, **changes: Any) -> bytes:
        """The record as it stands in the lease, with values changed."""
        return json.dumps(asdict(self) | changes, indent=1).encode()

    def runs_stopped(self) -> tuple[str, ...]:
        """The runs up to this one that a signal stopped, oldest first."""
        return (*self.stopped, self.run) if self.stopping and self.run else self.stopped

    def age_s(self) -> float:
        """Seconds since it said that it lives, as far as the clocks of the two machines agree."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.renewed)).total_seconds()

    def is_gone(self) -> bool:
        """Whether it was a process of this machine, and is none any more. False: nobody knows."""
        here = (socket.gethostname(), _boot(), _pid_space())
        if (self.host, self.boot, self.pid_space) != here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # another user's
        started = _started(self.pid)
        return bool(started and self.started) and started != self.started

    def in_words(self) -> str:
        """Who it is: `retake run 20261128T... on node-3 (pid 17, user ann) since 10:03:12 UTC`."""
        run = f" {self.run}" if self.run else ""
        since = datetime.fromisoformat(self.since).strftime("%Y-%m-%d %H:%M:%S UTC")
        return (
            f"`{self.command}`{run} on {self.host} (pid {self.pid}, user {self.user}) since {since}"
        )


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def user_name() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers run as numbers without a name
        return str(os.getuid())


def _boot() -> str:
    return _read("/proc/sys/kernel/random/boot_id")


def _pid_space() -> str:
    """Containers of one machine have process numbers of their own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process began, in ticks; `dead` for one that only waits to be buried, "" unknown."""
    state, _, rest = _read(f"/proc/{pid}/stat").rpartition(")")[2].strip().partition(" ")
    if state in ("Z", "X"):
        return "dead"
    return rest.split()[18] if rest else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
