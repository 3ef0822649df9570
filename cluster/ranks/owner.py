"""A rank group: one owner, N rank processes on its node, and an answer for every request.

The owner starts the ranks with the environment variables that torchrun sets and a new file for
torch's rendezvous, and talks to each over a socket pair in lines of JSON. Requests go to all
ranks at once, since all of them compute every request together. A rank that dies closes its socket,
ranks that hang report no progress, and one that needs a restart after an error says so with its
answer; each time the owner kills the whole group, whose collectives can never complete again, and
starts another one for the next request.

The ranks outlive nothing: when the owner's end of the socket closes, whatever the reason, a thread
in each rank ends its process at once.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO

from cluster.events.record import Happened, Note, ignore
from cluster.ranks.conversation import Conversation, end
from cluster.ranks.failures import RankGroupFailed
from cluster.ranks.messages import Answer, Request, Start
from cluster.ranks.rank import Rank

CHANNEL = "RETAKE_CHANNEL"
"""The environment variable that tells a rank which file descriptor is its socket."""

RENDEZVOUS = "RETAKE_RENDEZVOUS"
"""The environment variable that names the rendezvous file, where the ranks find each other
(`pipeline.model.parallel.group.RENDEZVOUS`; importing that would bring torch into the owner)."""


class RankGroup:
    """Owns the processes of one group. Several threads may use it at once.

    Args:
        command: the program of a rank, as for `subprocess`; it ends in
            `cluster.ranks.process.serve`.
        ranks: N.
        start: the first message to each rank; it answers once it is ready to work.
        start_deadline_s: seconds until all ranks must have answered it.
        stall_deadline_s: seconds without any progress after which a group at work is killed.
        environment: more environment variables for the ranks.
        note: gets what happens to the group and its ranks.

    Attributes:
        starts: how often ranks were started.
    """

    def __init__(
        self,
        command: Sequence[str],
        ranks: int,
        start: Start,
        *,
        start_deadline_s: float,
        stall_deadline_s: float,
        environment: Mapping[str, str] | None = None,
        note: Note = ignore,
    ) -> None:
        self.command = list(command)
        self.ranks = ranks
        self.start_message = start
        self.start_deadline_s = start_deadline_s
        self.stall_deadline_s = stall_deadline_s
        self.environment = dict(environment or {})
        self.note = note
        self.starts = 0
        self._conversation: Conversation | None = None
        self._starting = threading.RLock()
        self._turns = _Turns()

    def request(
        self, message: Request, *, alone: bool = False, begin: Callable[[], None] = lambda: None
    ) -> list[Answer]:
        """Send a message to all ranks, started first where there are none; one answer each.

        Where one rank fails and the others do not answer, its error alone is the answer. Then, and
        where a rank needs a restart after its answer, the next request starts another group.

        Args:
            alone: beside no other request, so that what happens is known to come of this one.
            begin: called once the group is ready and it is this request's turn.

        Raises:
            RankDied, DeadlinePassed, RankGroupFailed: the group is gone; the next request starts
                another one. `charged` says whether this request brought it down.
            GroupCannotStart: a rank refused to work.
        """
        with self._turns.take(alone):
            ranks = self.ready()
            begin()
            return ranks.ask(message)

    def ready(self) -> Conversation:
        """Start the ranks where there are none. Raises as `request` does."""
        with self._starting:
            if self._conversation is not None and self._conversation.ended:
                self.close()  # wait until the old ones are gone, and their memory with them
            if self._conversation is None:
                self.start()
            assert self._conversation is not None
            return self._conversation

    def start(self) -> None:
        """Start the ranks and wait until all of them are ready. Raises as `request` does."""
        self.starts += 1
        again = Happened.GROUP_STARTING if self.starts == 1 else Happened.GROUP_RESTARTING
        self.note(again, counts={"ranks": self.ranks})
        began = time.monotonic()
        ranks: list[Rank] = []
        # The file has no name, so that none is left behind whoever dies when; ranks open it through
        # the descriptor that they inherit. Its name would have to outlive the start: NCCL opens it
        # again when a pair of ranks first exchanges.
        try:
            with tempfile.TemporaryFile() as rendezvous:
                for rank in range(self.ranks):
                    ranks.append(self._spawn(rank, rendezvous.fileno()))
            self._conversation = Conversation(ranks, self.stall_deadline_s, self.note)
        except BaseException as error:
            end(ranks)
            if isinstance(error, OSError):
                # No folder for temporary files, no room in it, no memory for a process, or too many
                # processes or open files.
                raise RankGroupFailed(
                    f"a rank could not be started on {socket.gethostname()}: {error}. Look there "
                    "at the folder for temporary files (TMPDIR), the memory, and the limits of "
                    "processes and open files (ulimit -u, -n)"
                ) from error
            raise
        try:
            self._conversation.ask(self.start_message, self.start_deadline_s)
        except BaseException:
            self.close()
            raise
        self.note(Happened.GROUP_READY, seconds=round(time.monotonic() - began, 3))

    def pids(self) -> list[int]:
        """The process ids of the ranks that were started."""
        talk = self._conversation
        return [rank.process.pid for rank in talk.ranks] if talk and not talk.ended else []

    def doing(self) -> str:
        """What the ranks reported last; empty where they are at no request."""
        talk = self._conversation
        return talk.doing() if talk and not talk.ended else ""

    def close(self) -> None:
        """End all ranks and wait until they are gone."""
        with self._starting:
            if self._conversation is not None:
                self._conversation.close()
            self._conversation = None

    def _spawn(self, rank: int, rendezvous: int) -> Rank:
        with ExitStack() as opened:
            ours, theirs = map(opened.enter_context, socket.socketpair())
            log = opened.enter_context(tempfile.TemporaryFile())
            process = self._process(rank, rendezvous, theirs, log)
            theirs.close()
            opened.pop_all()
        return Rank(process, ours, log)

    def _process(
        self, rank: int, rendezvous: int, theirs: socket.socket, log: IO[bytes]
    ) -> subprocess.Popen[bytes]:
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
        return subprocess.Popen(
            self.command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno(), rendezvous],
        )


class _Turns:
    """Lets any number of threads in, or one alone, which then waits for the others to leave."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = 0

    @contextmanager
    def take(self, alone: bool) -> Iterator[None]:
        with self._changed:
            if alone:
                self._changed.wait_for(lambda: not self._alone)
                self._alone = 1
                self._changed.wait_for(lambda: not self._inside)
            else:
                self._changed.wait_for(lambda: not self._alone)
                self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                if alone:
                    self._alone = 0
                else:
                    self._inside -= 1
                self._changed.notify_all()


def rank_command() -> list[str]:
    """The program of a rank."""
    return [sys.executable, "-m", "cluster.ranks.process"]
