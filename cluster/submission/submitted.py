"""A job that was submitted: how it is, what it prints, and its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cluster.job import CannotRun
from cluster.submission.head import Head, reach
from pipeline.redaction import redacted

RUNNING = ("PENDING", "RUNNING")
SILENT_S = 60.0
"""A run prints a line more often. After so long without one the connection is made anew: the old
one may be dead, and nothing would tell."""
LOST_S = 120.0
"""A head that cannot be reached is tried for so long while a log is followed."""
AGAIN_S = 2.0
LINE_S = 20.0
"""How often it is said that an end is awaited."""
ENDED_S = 30.0
"""After the last line of the log, the end of a job is known in this time."""
STOPPED = 143
"""The exit status of a run that SIGTERM has stopped, which is what Ray sends."""
OUTPUT, NAME = "retake_output", "retake_name"
"""What a job carries along for who asks about it."""


@dataclass(frozen=True)
class SubmittedJob:
    """What Ray tells of a submitted job.

    Args:
        id: its submission id.
        status: Ray's: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        message: what Ray says of it, without secrets.
        exit_code: of `retake run`: 0, 1 or 3, and 143 after a stop; None while it runs, and where
            Ray does not know it.
        started_s, ended_s: seconds since 1970; None where it has not come to that.
        name: of the job, where `retake submit` sent it; else empty.
        output: the job's output folder, where `retake submit` sent it; else empty.
    """

    id: str
    status: str
    message: str = ""
    exit_code: int | None = None
    started_s: float | None = None
    ended_s: float | None = None
    name: str = ""
    output: str = ""

    @property
    def runs(self) -> bool:
        """Whether it has not ended; one that waits for its start runs too."""
        return self.status in RUNNING


def job_status(
    job_id: str, address: str | None = None, token_file: str | None = None
) -> SubmittedJob:
    """How a submitted job is, now.

    Args:
        address: of the cluster's dashboard, `http://head:8265`; by default that of
            RAY_API_SERVER_ADDRESS, or of RAY_ADDRESS.
        token_file: the file with the cluster's token; by default Ray's own places.

    Raises:
        CannotRun: the cluster cannot be asked, or has no such job.
    """
    return _status(reach(address, token_file), job_id)


def job_logs(
    job_id: str, address: str | None = None, token_file: str | None = None, *, follow: bool = False
) -> Iterator[str]:
    """The lines that a submitted job has printed, without their line ends.

    They hold no secrets. The cluster keeps them after the job's end.

    Args:
        follow: go on until the job has ended.

    Raises:
        CannotRun: as `job_status` does; also while lines are awaited, where the head is lost.
    """
    head = reach(address, token_file)
    _status(head, job_id)
    if follow:
        yield from followed_log(head, job_id)
        return
    from cluster.submission.client import asking

    with asking(head, job_id) as client:
        text = client.get_job_logs(job_id)
    yield from map(redacted, text.splitlines())


def stop_job(
    job_id: str, address: str | None = None, token_file: str | None = None
) -> SubmittedJob:
    """Ask a submitted job to stop in order; comes back at once, with how it was before.

    A job that has ended stays as it is. The run gets SIGTERM, and the time that `retake submit`
    has asked for it: `cluster.stop_grace_s` and 20 s more.

    Raises:
        CannotRun: as `job_status` does.
    """
    head = reach(address, token_file)
    before = _status(head, job_id)
    if before.runs:
        from cluster.submission.client import asking

        with asking(head, job_id) as client:
            client.stop_job(job_id)
    return before


def await_end(
    job_id: str,
    address: str | None = None,
    token_file: str | None = None,
    *,
    timeout_s: float | None = None,
    waiting: Callable[[SubmittedJob], None] = lambda job: None,
) -> SubmittedJob:
    """How a submitted job ended, once it has.

    Args:
        timeout_s: so long at most; by default as long as it takes, which Ray bounds after a stop.
        waiting: called with how the job is, every 20 s.

    Raises:
        CannotRun: as `job_status` does, or the job has not ended in time.
    """
    head = reach(address, token_file)
    started = reported = time.monotonic()
    while (job := _status(head, job_id)).runs:
        now = time.monotonic()
        if timeout_s is not None and now - started > timeout_s:
            raise CannotRun(
                f"{job_id} has not ended in {timeout_s:g} s: it is {job.status}. Ray kills it when "
                "its cluster.stop_grace_s and 20 s more are over; `retake status` tells"
            )
        if now - reported > LINE_S:
            waiting(job)
            reported = now
        time.sleep(0.5)
    return job


def end_of(head: Head, job_id: str) -> SubmittedJob:
    """How a job ended whose log has come to its end. Raises CannotRun where that is not known."""
    until = time.monotonic() + ENDED_S
    while (job := _status(head, job_id)).runs and time.monotonic() < until:
        time.sleep(0.2)
    return job


def _status(head: Head, job_id: str) -> SubmittedJob:
    from cluster.submission.client import asking

    with asking(head, job_id) as client:
        found = client.get_job_info(job_id)
    status = str(getattr(found.status, "value", found.status))
    carried = found.metadata or {}
    return SubmittedJob(
        id=job_id,
        status=status,
        message=redacted(found.message or ""),
        exit_code=STOPPED if status == "STOPPED" else found.driver_exit_code,
        started_s=_seconds(found.start_time),
        ended_s=_seconds(found.end_time),
        name=carried.get(NAME, ""),
        output=carried.get(OUTPUT, ""),
    )


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None


def followed_log(head: Head, job_id: str) -> Iterator[str]:
    """The lines of a log as they come, from the first to the job's end.

    A connection that breaks is made anew, and the lines that came before are passed over.
    """
    seen, last, lost_since = 0, False, 0.0
    while True:
        passed, rest, whole = 0, "", False
        try:
            for text in _tail(head, job_id):
                *lines, rest = (rest + text).split("\n")
                yield from map(redacted, lines[max(0, seen - passed) :])
                passed += len(lines)
                seen = max(seen, passed)
            whole = True
        except (OSError, CannotRun):  # a late answer is an OSError, too
            pass
        try:
            ended = not _status(head, job_id).runs
        except CannotRun as error:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > LOST_S:
                raise _lost(head, job_id) from error
        else:
            lost_since = 0.0
            if ended and (whole or last):  # else the rest of the log is read once more
                if rest and passed == seen:
                    yield redacted(rest)
                return
            last = ended
        time.sleep(AGAIN_S)


def _lost(head: Head, job_id: str) -> CannotRun:
    return CannotRun(
        f"the cluster at {head.address} could not be reached for {LOST_S:g} s. The job goes on as "
        f"long as its head lives: `retake logs {job_id} --address {head.address} --follow` follows "
        "it again"
    )


def _tail(head: Head, job_id: str) -> Iterator[str]:
    """Pieces of a log, as the head sends them, until it closes the connection.

    Raises:
        TimeoutError: nothing came for a while.
        OSError, CannotRun: the connection cannot be made, or broke.
    """
    import aiohttp

    from cluster.submission.client import asking

    with asking(head, job_id) as client:
        loop = asyncio.new_event_loop()
        pieces = client.tail_job_logs(job_id)
        try:
            while (text := loop.run_until_complete(_next(pieces))) is not None:
                yield text
        except aiohttp.ClientError as error:
            raise ConnectionError(str(error)) from error
        finally:
            _close(loop, pieces)


async def _next(pieces: AsyncIterator[str]) -> str | None:
    try:
        return await asyncio.wait_for(anext(pieces), SILENT_S)
    except StopAsyncIteration:
        return None


def _close(loop: asyncio.AbstractEventLoop, pieces: Any) -> None:
    """End what a signal may have left in the middle."""
    with suppress(Exception):
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.wait_for(pieces.aclose(), 2.0))
    with suppress(Exception):
        loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
