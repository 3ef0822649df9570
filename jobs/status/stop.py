"""`retake stop OUTPUT`: asks the run of an output folder to end, and waits until it has."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress

from cluster.output.holder import user_name
from jobs.errors import JobError
from jobs.status.heartbeat import BEAT_S
from jobs.status.look import LOOK_S, Seen, look
from jobs.status.record import NAME, Status
from jobs.status.request import StopRequest
from pipeline.storage import Folder

ANSWER_S = 6 * BEAT_S
"""A run that lives has heard of a request by then."""
END_S = 60.0
"""Beside `stop_grace_s`, what a run takes to store its results and to shut Ray down."""


def stop_run(
    output: Folder,
    say: Callable[[str], None],
    *,
    wait: bool = True,
    timeout_s: float | None = None,
) -> None:
    """Ask a run to end in order, as SIGTERM does.

    Args:
        say: called with each line for the user.
        wait: until it has ended.
        timeout_s: so long; by default as long as a run that answers takes.

    Raises:
        JobError: no run is there, or it does not end in time.
    """
    seen = look(output, say)
    run = _running(output, seen, say)
    if run is None:
        return
    name, who = run
    by = f"{user_name()} on {socket.gethostname()}"
    StopRequest.now(name, by).write(output)
    say(f"asked {who} to stop; it looks every {BEAT_S:g} s")
    if wait:
        _wait(output, name, who, say, timeout_s)


def _running(output: Folder, seen: Seen, say: Callable[[str], None]) -> tuple[str, str] | None:
    """The name of the run to stop, and who it is; None where it has ended.

    Raises:
        JobError: there is none.
    """
    status, holder = seen.status, seen.holder
    if holder is not None and not holder.run:
        raise JobError(
            f"output {output.uri}: {holder.in_words()} holds it, which is no run; end it there "
            "with Ctrl-C"
        )
    if seen.life == "ended" and status is not None:
        say(f"run {status.run} on {status.host} has ended already: {status.phase}")
        return None
    if seen.life == "unknown":
        raise JobError(
            f"output {output.uri}: no run is known there: it has no {NAME}, and nobody holds it. "
            "Give the folder that the job file calls `output`"
        )
    if seen.life in ("killed", "silent"):
        who = holder.in_words() if holder else f"run {status.run if status else ''}"
        raise JobError(
            f"output {output.uri}: {who} is not running: it has probably been killed. There is "
            "nothing to stop; run the same command again to go on"
        )
    if holder is None:
        raise JobError(
            f"output {output.uri}: a run is about to begin there and has no name yet; try again in "
            "some seconds"
        )
    return holder.run, holder.in_words()


def _wait(
    output: Folder,
    name: str,
    who: str,
    say: Callable[[str], None],
    timeout_s: float | None,
) -> None:
    """Wait until a run says that it has ended.

    Raises:
        JobError: it does not in time.
    """
    began = time.monotonic()
    heard, shown = False, ""
    while True:
        status = _status(output, name)
        if status is not None and status.state == "ended":
            say(f"the run has ended after {time.monotonic() - began:.0f} s: {status.phase}")
            return
        heard = heard or (status is not None and status.state == "stopping")
        if status is not None and status.phase != shown and heard:
            shown = status.phase
            say(": ".join(filter(None, (status.phase, status.waiting_for))))
        grace_s = status.stop_grace_s if status else 0.0
        most_s = timeout_s or (ANSWER_S + grace_s + END_S if heard else ANSWER_S)
        if time.monotonic() - began >= most_s:
            raise JobError(_late(output, who, most_s, heard))
        time.sleep(LOOK_S)


def _status(output: Folder, name: str) -> Status | None:
    """The status of a run, where it is the one that the folder has; None while nobody can tell."""
    with suppress(Exception):  # storage may be away for a moment
        status = Status.parse(output.read(NAME))
        if status is not None and status.run == name:
            return status
    return None


def _late(output: Folder, who: str, seconds: float, heard: bool) -> str:
    if heard:
        return (
            f"output {output.uri}: {who} is stopping, and has not ended after {seconds:.0f} s. "
            "`retake status` shows what it is at"
        )
    return (
        f"output {output.uri}: {who} has not answered in {seconds:.0f} s. It may be frozen, unable "
        "to reach its storage, or of a version that knows no such request; the request stays for "
        "it. Where it must end now, send SIGTERM to its process"
    )
