"""The processes of a run, found in /proc: which there are, what each is, and which are left."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

LOOK_S = 0.2
ROLES = {
    "rank": re.compile(r"-m cluster\.ranks\.process"),
    # Ray Data's actors; the owners of rank groups are among them.
    "owner": re.compile(r"ray::.*(EncodePrompts|InvertVideos|EditVideos|ReconstructEdits)"),
    "helper": re.compile(r"ray::(?!.*(Agent|IDLE))"),
    "raylet": re.compile(r"/raylet/raylet "),
    "head": re.compile(r"/gcs/gcs_server "),
    "driver": re.compile(r"-m jobs\.cli "),
    "starting": re.compile(r"default_worker\.py"),
    "agent": re.compile(r"ray::.*Agent|/dashboard/|runtime_env|monitor\.py|log_monitor"),
    "idle": re.compile(r"ray::IDLE"),
}
"""What a command line says a process is; the first that fits."""


@dataclass(frozen=True)
class Process:
    """A process that runs or ran.

    Args:
        born: clock ticks from the start of the machine; with the `pid` it is one of its kind.
    """

    pid: int
    born: int

    @property
    def command(self) -> str:
        """Its command line, or the title that it gave itself; empty when it is gone."""
        try:
            text = Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            return ""
        return text.decode(errors="replace").strip()

    @property
    def role(self) -> str:
        command = self.command
        return next((role for role, like in ROLES.items() if like.search(command + " ")), "other")

    @property
    def runs(self) -> bool:
        """Whether it is there and no zombie."""
        now = _stat(self.pid)
        return now is not None and now[1] == self.born and now[2] not in "ZX"

    def __str__(self) -> str:
        return f"{self.role} {self.pid} ({self.command[:100]})"


class Family:
    """All processes that ever came of those with a mark in their environment.

    Ray's workers write their titles over their environment, and live on under another parent when
    theirs is killed: who belongs is noted while it can be seen.

    Args:
        mark: `NAME=value`.
    """

    def __init__(self, mark: str) -> None:
        self.mark = mark.encode()
        self.seen: set[Process] = set()
        self._foreign: set[Process] = set()
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def look(self) -> list[Process]:
        """Those that run now."""
        with self._lock:
            there = {}
            for name in os.listdir("/proc"):
                if name.isdecimal() and (stat := _stat(int(name))) and stat[2] not in "ZX":
                    there[int(name)] = stat
            found = {pid: Process(pid, stat[1]) for pid, stat in there.items()}
            ours = {pid for pid, one in found.items() if one in self.seen or self._marked(one)}
            grown = True
            while grown:
                more = {pid for pid, stat in there.items() if stat[0] in ours} - ours
                ours |= more
                grown = bool(more)
            now = [found[pid] for pid in sorted(ours)]
            self.seen.update(now)
            return now

    def of_role(self, role: str) -> list[Process]:
        return [one for one in self.look() if one.role == role]

    def below(self, above: Process) -> list[Process]:
        """Those that run and came of a process."""
        found: list[Process] = []
        parents = {one: _stat(one.pid) for one in self.look()}
        line = {above.pid}
        for _ in parents:
            more = [
                one
                for one, stat in parents.items()
                if stat and stat[0] in line and one not in found
            ]
            if not more:
                break
            found += more
            line = {one.pid for one in more}
        return found

    def above(self, below: Process, role: str) -> Process | None:
        """The nearest process of a role that one came of."""
        while (stat := _stat(below.pid)) and (parent := process(stat[0])):
            if parent.role == role:
                return parent
            below = parent
        return None

    def with_port(self, port: int) -> Process | None:
        """The one that runs and has a TCP connection from a port of this machine."""
        inodes = {
            f"socket:[{line.split()[9]}]"
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
            if int(line.split()[1].rpartition(":")[2], 16) == port
        }
        return next((one for one in self.look() if inodes & set(_open(one.pid))), None)

    def close(self) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(LOOK_S):
            self.look()

    def _marked(self, one: Process) -> bool:
        if one in self._foreign:
            return False
        try:
            marked = self.mark in Path(f"/proc/{one.pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        if not marked:
            self._foreign.add(one)
        return marked


def _open(pid: int) -> list[str]:
    """What its file descriptors lead to."""
    try:
        return [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return []


def process(pid: int) -> Process | None:
    stat = _stat(pid)
    return Process(pid, stat[1]) if stat else None


def _stat(pid: int) -> tuple[int, int, str] | None:
    """Its parent, when it was born, and its state."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    after = text.rpartition(")")[2].split()
    return int(after[1]), int(after[19]), after[0]
