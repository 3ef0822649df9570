"""The owner's end of the sockets to a group's ranks, from their start to their end.

A thread sends and receives, so that any number of requests can be under way: each goes to all ranks
at once, in one order, and an answer belongs to the request whose number it has. Nothing here waits
for one rank alone: a rank that takes no message holds up no other, and no clock.
"""

from __future__ import annotations

import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cluster.events.record import LINES, Happened, Note, ignore
from cluster.ranks.failures import (
    LOGGED,
    DeadlinePassed,
    GroupCannotStart,
    RankDied,
    RankGroupFailed,
)
from cluster.ranks.messages import (
    GO_ON,
    Answer,
    Progress,
    Request,
    Start,
    numbered,
    parse_report,
    split_number,
    to_line,
)
from cluster.ranks.rank import LOG_KEPT, Rank
from pipeline.redaction import log_error

AGREE_S = 30.0
"""When one rank answers with an error the others may be without progress for so long."""
CLOSE_S = 5.0
"""Ranks that do not end by themselves in this time are killed."""
KILL_S = 30.0
"""A rank that is killed and still there after this time hangs in a driver, and is left behind."""
READ_BYTES = 1 << 16
START = 0
"""The number of the start among the requests."""
NOTHING_YET = "the start of the request"


@dataclass
class _Waiting:
    """A request without all of its answers."""

    deadline_s: float | None
    asked_at: float = field(default_factory=time.monotonic)
    answers: dict[int, Answer] = field(default_factory=dict)
    made: list[Answer] | None = None
    error: RankGroupFailed | GroupCannotStart | None = None
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def until(self) -> float | None:
        return None if self.deadline_s is None else self.asked_at + self.deadline_s

    @property
    def failed(self) -> Answer | None:
        return next((answer for answer in self.answers.values() if answer.error_code), None)


class _Over(Exception):
    """The ranks cannot go on after a request, which has its answers."""

    def __init__(self, waiting: _Waiting, made: list[Answer]) -> None:
        self.waiting, self.made = waiting, made


class Conversation:
    """With the ranks of one start. It ends with the first failure, and the ranks end with it.

    Args:
        stall_deadline_s: seconds without progress of any rank, while there is a request.
        note: gets what happens to the ranks.
    """

    def __init__(self, ranks: Sequence[Rank], stall_deadline_s: float, note: Note = ignore) -> None:
        self.ranks = list(ranks)
        self.stall_deadline_s = stall_deadline_s
        self.note = note
        self.ended = False
        self._closing = False
        self._count = 0
        self._waiting: dict[int, _Waiting] = {}
        self._progress_at, self._did = time.monotonic(), NOTHING_YET
        self._lock = threading.Lock()
        self._woken, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self._thread.start()

    def ask(self, message: Request | Start, deadline_s: float | None = None) -> list[Answer]:
        """Send a message to all ranks; one answer each, or the error of one alone.

        Args:
            deadline_s: seconds for all answers, whatever the progress.

        Raises:
            RankGroupFailed, GroupCannotStart: the conversation is over.
        """
        waiting = _Waiting(deadline_s)
        with self._lock:
            if self.ended:
                error = RankGroupFailed("the group ended before it was asked")
                error.charged = False
                raise error
            if not self._waiting:
                self._progress_at, self._did = waiting.asked_at, NOTHING_YET
            line = numbered(self._count, to_line(message))
            self._waiting[self._count] = waiting
            self._count += 1
            for rank in self.ranks:
                rank.unsent += line
        self._wake()
        waiting.done.wait()
        if waiting.error is not None:
            raise waiting.error
        assert waiting.made is not None
        return waiting.made

    def close(self) -> None:
        """End all ranks and wait until they are gone."""
        self._closing = True
        self._wake()
        self._thread.join()

    def doing(self) -> str:
        """What a rank reported last; empty where there is no request, or nothing of it yet."""
        did = self._did
        return did if self._waiting and did != NOTHING_YET else ""

    def _wake(self) -> None:
        with suppress(OSError):  # the thread has ended, or is awake
            self._waker.send(b"x", socket.MSG_DONTWAIT)

    def _talk(self) -> None:
        """The thread: send, receive and watch the clock until the end."""
        over: _Over | None = None
        blamed = False
        error: RankGroupFailed | GroupCannotStart = RankGroupFailed("the group was closed")
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._woken, selectors.EVENT_READ, None)
                for number, rank in enumerate(self.ranks):
                    rank.channel.setblocking(False)
                    selector.register(rank.channel, selectors.EVENT_READ, number)
                while not self._closing:
                    self._turn(selector)
        except _Over as found:
            over = found
            error = RankGroupFailed("the group ended after an error of another request")
        except (RankGroupFailed, GroupCannotStart) as found:
            error, blamed = found, True
        except Exception as found:  # whatever it is, somebody waits
            error, blamed = RankGroupFailed(f"{type(found).__name__}: {found}"), True
        self._end(error, blamed, over)

    def _turn(self, selector: selectors.BaseSelector) -> None:
        with self._lock:
            for rank in self.ranks:
                sends = selectors.EVENT_WRITE if rank.unsent else 0
                selector.modify(
                    rank.channel, selectors.EVENT_READ | sends, selector.get_key(rank.channel).data
                )
        for key, events in selector.select(self._patience()):
            if key.data is None:
                self._woken.recv(READ_BYTES)
                continue
            if events & selectors.EVENT_READ:
                self._receive(key.data)
            if events & selectors.EVENT_WRITE:
                self._send(key.data)
        self._check_clock()

    def _send(self, number: int) -> None:
        rank = self.ranks[number]
        with self._lock:
            try:
                sent = rank.channel.send(rank.unsent)
            except BlockingIOError:
                return
            except OSError:
                sent = -1
            del rank.unsent[: max(sent, 0)]
        if sent < 0:
            self._receive(number)  # what it reported last says what it was at
            raise self._death(number)

    def _receive(self, number: int) -> None:
        """Take all that a rank has sent."""
        rank = self.ranks[number]
        while True:
            try:
                data = rank.channel.recv(READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                raise self._death(number)
            rank.received += data
            *lines, rest = rank.received.split(b"\n")
            rank.received = rest
            for line in lines:
                self._take(number, bytes(line))

    def _take(self, number: int, line: bytes) -> None:
        request, text = split_number(line)
        report = parse_report(text)
        self._progress_at = self.ranks[number].heard_at = time.monotonic()
        if isinstance(report, Progress):
            self.ranks[number].at_work = report.at_work
            self._did = report.did or self._did
            return
        if report.refusal is not None:
            self._note(Happened.RANK_REFUSED, number, message=report.refusal)
            raise GroupCannotStart(report.refusal)
        if report.error_code in LOGGED:
            about = {"code": report.error_code, "message": report.error}
            self._note(Happened.RANK_FAILED, number, **about)
        waiting = self._waiting[request]
        waiting.answers[number] = report
        if len(waiting.answers) < len(self.ranks):
            return
        answers = [waiting.answers[place] for place in range(len(self.ranks))]
        with self._lock:
            del self._waiting[request]
        if any(answer.needs_restart for answer in answers):
            raise _Over(waiting, answers)
        if waiting.failed:
            with self._lock:
                for rank in self.ranks:
                    rank.unsent += numbered(request, GO_ON + b"\n")
        waiting.made = answers
        waiting.done.set()

    def _patience(self) -> float | None:
        """Seconds until the clock may have run out."""
        with self._lock:
            if not self._waiting:
                return None
            ends = [self._progress_at + self._quiet_s()] if START not in self._waiting else []
            ends += [one.until for one in self._waiting.values() if one.until is not None]
        return max(0.0, min(ends) - time.monotonic())

    def _quiet_s(self) -> float:
        """How long there may be no progress."""
        failed = any(waiting.failed for waiting in self._waiting.values())
        return min(AGREE_S, self.stall_deadline_s) if failed else self.stall_deadline_s

    def _check_clock(self) -> None:
        now = time.monotonic()
        with self._lock:
            if start := self._waiting.get(START):
                if start.until is not None and now >= start.until:
                    raise self._not_ready(start)
                return
            if not self._waiting or now < self._progress_at + self._quiet_s():
                return
            for number, waiting in self._waiting.items():
                if waiting.failed:  # the others wait in a collective for the one that failed
                    del self._waiting[number]
                    raise _Over(waiting, [waiting.failed])
        for number in range(len(self.ranks)):
            self._note(Happened.RANK_LATE, number)
        heard = [rank.heard_at for rank in self.ranks]
        raise DeadlinePassed(
            f"no progress for {self.stall_deadline_s:g} s; the last was {self._did}. The group was "
            "ended; where a single step takes longer, set cluster.stall_deadline_s higher. "
            + self._last_of(heard.index(min(heard)))
        )

    def _not_ready(self, start: _Waiting) -> DeadlinePassed:
        late = next(place for place in range(len(self.ranks)) if place not in start.answers)
        self._note(Happened.RANK_LATE, late)
        return DeadlinePassed(
            f"rank {late} of {len(self.ranks)} was not ready within {start.deadline_s:g} s. "
            "Have the checkpoint on a faster disk, or set cluster.start_deadline_s higher. "
            + self._last_of(late)
        )

    def _death(self, number: int) -> RankDied:
        rank = self.ranks[number]
        rank.process.kill()  # its socket is closed: whatever is left of it can answer nothing
        ending = _ending(_waited(rank, KILL_S))
        died = Happened.RANK_DIED if self._waiting else Happened.RANK_ENDED
        self._note(died, number, code=ending)
        return RankDied(
            f"rank {number} of {len(self.ranks)} ended ({ending}); its last log "
            f"lines: {rank.last_log_lines() or 'none'}"
        )

    def _last_of(self, number: int) -> str:
        lines = self.ranks[number].last_log_lines() or "none"
        return f"The last log lines of rank {number} of {len(self.ranks)}: {lines}"

    def _note(self, event: Happened, number: int, **about: Any) -> None:
        """Note what happened to a rank, with its last log lines."""
        lines = self.ranks[number].last_log_lines(LOG_KEPT).splitlines()[-LINES:]
        self.note(event, process="rank", rank=number, lines=lines, **about)

    def _end(
        self, error: RankGroupFailed | GroupCannotStart, blamed: bool, over: _Over | None
    ) -> None:
        """End the ranks, then tell all who wait.

        A request is charged only where no other can have been the cause: two may have been at work.
        """
        with self._lock:
            self.ended = True
            left, self._waiting = self._waiting, {}
        at_work = {number for rank in self.ranks for number in rank.at_work} & set(left)
        try:
            self._end_ranks()
        except Exception as problem:  # whatever it is, somebody waits
            log_error(problem)
        if not self._closing:
            late = isinstance(error, DeadlinePassed)
            died = Happened.GROUP_STALLED if late else Happened.GROUP_DIED
            died = died if left else Happened.GROUP_ENDED  # Ray ends the processes of a wave so
            self.note(died, message=str(error).partition("\n")[0])
        if over is not None:
            over.waiting.made = over.made
            over.waiting.done.set()
        for number, waiting in left.items():
            waiting.error = own = type(error)(str(error))
            own.charged = blamed and (len(left) == 1 or at_work == {number})
            waiting.done.set()

    def _end_ranks(self) -> None:
        end(self.ranks)
        self._woken.close()
        self._waker.close()


def end(ranks: Sequence[Rank]) -> None:
    """End processes and wait until they are gone."""
    for rank in ranks:
        rank.channel.close()  # a rank that still runs its reading thread ends itself
    until = time.monotonic() + CLOSE_S
    for rank in ranks:
        if _waited(rank, until - time.monotonic()) is None:
            rank.process.kill()
    until = time.monotonic() + KILL_S
    for rank in ranks:
        _waited(rank, until - time.monotonic())
        rank.log.close()


def _waited(rank: Rank, seconds: float) -> int | None:
    """The exit code of a rank; None where it has none in time."""
    try:
        return rank.process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return None


def _ending(code: int | None) -> str:
    if code is None:
        return "its socket, but not its process"
    full = ", as where the memory of its node is full" if code == -signal.SIGKILL else ""
    return f"signal {-code}{full}" if code < 0 else f"exit status {code}"
