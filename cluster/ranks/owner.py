"""A rank group: one owner, N rank processes on its node, and an answer for every request.

The owner starts the ranks with the environment variables that torchrun sets and a new file for
torch's rendezvous, and talks to each over a socket pair in lines of JSON. Requests go to all
ranks at once, since all of them compute every request together. A rank that dies closes its socket,
a rank that hangs misses the deadline, and one that needs a restart after an error says so with its
answer; each time the owner kills the whole group, whose collectives can never complete again, and
starts another one for the next request.

The ranks outlive nothing: when the owner's end of the socket closes, whatever the reason, a thread
in each rank ends its process at once.
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

from cluster.ranks.messages import Answer, Request, Start, parse_answer, to_line

CHANNEL = "RETAKE_CHANNEL"
"""The environment variable that tells a rank which file descriptor is its socket."""

RENDEZVOUS = "RETAKE_RENDEZVOUS"
"""The environment variable that names the rendezvous file, where the ranks find each other
(`pipeline.model.parallel.group.RENDEZVOUS`; importing that would bring torch into the owner)."""

LOG_TAIL_BYTES = 2000
AGREE_S = 30.0
"""When one rank answers with an error the others have this long to answer too."""
CLOSE_S = 5.0
"""A rank that does not end by itself in this time is killed."""
READ_BYTES = 1 << 16


class RankGroupFailed(Exception):
    """The group could not answer; it has been killed. The next request starts another one."""


class RankDied(RankGroupFailed):
    """A rank's process ended."""


class DeadlinePassed(RankGroupFailed):
    """The group did not answer in time."""


class GroupCannotStart(Exception):
    """A rank said why it cannot work at all (a checkpoint that does not load, say)."""


@dataclass
class _Rank:
    process: subprocess.Popen[bytes]
    channel: socket.socket
    log: IO[bytes]
    received: bytearray = field(default_factory=bytearray)

    def last_log_lines(self) -> str:
        """The end of what the rank printed, for an error message."""
        self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, self.log.tell() - LOG_TAIL_BYTES))
        return self.log.read().decode(errors="replace").strip()


class RankGroup:
    """Owns the processes of one group; not for use from several threads at once.

    Args:
        command: the program of a rank, as for `subprocess`; it ends in
            `cluster.ranks.process.serve`.
        ranks: N.
        start: the first message to each rank; it answers once it is ready to work.
        start_deadline_s: seconds until all ranks must have answered it.
        environment: more environment variables for the ranks.

    Attributes:
        starts: how often ranks were started.
        failed_starts: how often in a row, up to now, they did not become ready.
    """

    def __init__(
        self,
        command: Sequence[str],
        ranks: int,
        start: Start,
        *,
        start_deadline_s: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.command = list(command)
        self.ranks = ranks
        self.start_message = start
        self.start_deadline_s = start_deadline_s
        self.environment = dict(environment or {})
        self.starts = 0
        self.failed_starts = 0
        self._ranks: list[_Rank] = []

    def request(self, message: Request | Start, deadline_s: float) -> list[Answer]:
        """Send a message to all ranks, started first where there are none; one answer each.

        Where one rank fails and the others do not answer, its error alone is the answer. Then, and
        where a rank needs a restart after its answer, the next request starts another group.

        Raises:
            RankDied, DeadlinePassed: the group is gone; the next request starts another one.
            GroupCannotStart: a rank refused to work.
        """
        if not self._ranks:
            self.start()
        until = time.monotonic() + deadline_s
        answers: dict[int, Answer] = {}
        try:
            with self._listening(to_line(message)) as selector:
                while len(answers) < len(self._ranks):
                    ready = selector.select(max(0.0, until - time.monotonic()))
                    if not ready and time.monotonic() >= until:
                        if failed := next((a for a in answers.values() if a.error_code), None):
                            self.close()  # the others wait in a collective for the one that failed
                            return [failed]
                        raise self._late(answers, deadline_s)
                    for key, _ in ready:
                        if (answer := self._receive(key.data)) is None:
                            continue
                        answers[key.data] = answer
                        selector.unregister(key.fileobj)
                        if answer.error_code:
                            until = min(until, time.monotonic() + AGREE_S)
        except RankGroupFailed:
            self.close()
            raise
        if any(answer.needs_restart for answer in answers.values()):
            self.close()
        return [answers[number] for number in range(self.ranks)]

    def start(self) -> None:
        """Start the ranks and wait until all of them are ready. Raises as `request` does."""
        self.starts += 1
        self.failed_starts += 1  # until all are ready
        try:
            # The file has no name, so that none is left behind whoever dies when; ranks open it
            # through the descriptor that they inherit. Its name would have to outlive the start:
            # NCCL opens it again when a pair of ranks first exchanges.
            with tempfile.TemporaryFile() as rendezvous:
                for rank in range(self.ranks):
                    self._ranks.append(self._spawn(rank, rendezvous.fileno()))
            self.request(self.start_message, self.start_deadline_s)
        except BaseException:
            self.close()
            raise
        self.failed_starts = 0

    def pids(self) -> list[int]:
        """The process ids of the ranks that were started."""
        return [rank.process.pid for rank in self._ranks]

    def close(self) -> None:
        """End all ranks and wait until they are gone."""
        for rank in self._ranks:
            rank.channel.close()  # a rank that still runs its reading thread ends itself
        for rank in self._ranks:
            try:
                rank.process.wait(CLOSE_S)
            except subprocess.TimeoutExpired:
                rank.process.kill()
                rank.process.wait()
            rank.log.close()
        self._ranks = []

    def _spawn(self, rank: int, rendezvous: int) -> _Rank:
        ours, theirs = socket.socketpair()
        log = tempfile.TemporaryFile()
        environment = {
            **os.environ,
            **self.environment,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.ranks),
            "LOCAL_WORLD_SIZE": str(self.ranks),
            RENDEZVOUS: f"/proc/self/fd/{rendezvous}",
            "PYTHONUNBUFFERED": "1",
            CHANNEL: str(theirs.fileno()),
        }
        with theirs:
            process = subprocess.Popen(
                self.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno(), rendezvous],
            )
        return _Rank(process, ours, log)

    @contextmanager
    def _listening(self, line: bytes) -> Iterator[selectors.BaseSelector]:
        """Send a line to all ranks, and give what waits for their answers."""
        with selectors.DefaultSelector() as selector:
            for number, rank in enumerate(self._ranks):
                try:
                    rank.channel.sendall(line)
                except OSError:
                    raise self._death(number) from None
                selector.register(rank.channel, selectors.EVENT_READ, number)
            yield selector

    def _late(self, answers: Mapping[int, Answer], deadline_s: float) -> DeadlinePassed:
        late = next(number for number in range(self.ranks) if number not in answers)
        return DeadlinePassed(f"rank {late} of {self.ranks} gave no answer within {deadline_s:g} s")

    def _receive(self, number: int) -> Answer | None:
        rank = self._ranks[number]
        try:
            data = rank.channel.recv(READ_BYTES)
        except OSError:
            data = b""
        if not data:
            raise self._death(number)
        rank.received += data
        if not rank.received.endswith(b"\n"):
            return None
        answer = parse_answer(bytes(rank.received))
        rank.received.clear()
        if answer.refusal is not None:
            raise GroupCannotStart(answer.refusal)
        return answer

    def _death(self, number: int) -> RankDied:
        rank = self._ranks[number]
        rank.process.kill()  # its socket is closed: whatever is left of it can answer nothing
        code = rank.process.wait()
        return RankDied(
            f"rank {number} of {self.ranks} ended ({_ending(code)}); its last log "
            f"lines: {rank.last_log_lines() or 'none'}"
        )


def rank_command() -> list[str]:
    """The program of a rank."""
    return [sys.executable, "-m", "cluster.ranks.process"]


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit status {code}"
