"""`retake logs`: the logs of all processes of a run, merged by time, from any machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter

from cluster.events.record import LEVELS, Event, Happened
from cluster.events.stored import FOLDER, events_of, read_segments, segments
from cluster.output.lease import holder_of
from jobs.errors import JobError, WrongOption, nearest
from jobs.jobfile.paths import absolute
from pipeline.errors import Unreadable
from pipeline.storage import Folder, explain

LOOK_S = 2.0
"""With `--follow` the folder is looked at so often."""
QUIET_LOOKS = 30
"""After so many looks without an event, in which a run renews its lease several times, it is asked
whether it lives."""


@dataclass(frozen=True)
class Wanted:
    """Which events are shown.

    Args:
        level: the lowest.
        video: only those of this video.
    """

    level: str = "info"
    video: str | None = None

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise WrongOption(f"--level {self.level!r}: expected one of {', '.join(LEVELS)}")

    def has(self, event: Event) -> bool:
        high = event.level in LEVELS[LEVELS.index(self.level) :]  # type: ignore[arg-type]
        return high and self.video in (None, event.video_id)


def logged(location: str, run: str | None, wanted: Wanted) -> list[Event]:
    """The events of a run, in the order of time.

    Args:
        location: the output folder of a job, a path or URI.
        run: its name; the newest by default.

    Raises:
        JobError: there is no log, or no such run.
        Unreadable: storage does not give the logs.
    """
    output = Folder(absolute(location))
    with _readable(output):
        found = segments(output)
        names = [name for name, _ in found[_run_of(found, run, output)]]
        events = [event for event in read_segments(output, names) if wanted.has(event)]
    return sorted(events, key=attrgetter("time"))


def followed(
    location: str,
    run: str | None,
    wanted: Wanted,
    wait: Callable[[float], object] = time.sleep,
) -> Iterator[Event]:
    """The events of a run as they are stored, until its end.

    Those of one look are in the order of time; a process whose events came later is behind them.

    Args:
        wait: waits so many seconds.

    Raises:
        JobError: also where the run has ended without saying so, as one that was killed.
        Unreadable: as `logged` does.
    """
    output = Folder(absolute(location))
    read, quiet, sign = _Growing(output), 0, None
    while True:
        with _readable(output):
            found = segments(output)
            run = _run_of(found, run, output)
            events = sorted(read.new(found[run]), key=attrgetter("time"))
        yield from filter(wanted.has, events)
        if read.ended and not events:  # the owners' last events may come after the driver's
            return
        read.ended = read.ended or any(one.event == Happened.RUN_ENDED for one in events)
        quiet = 0 if events else quiet + 1
        if quiet >= QUIET_LOOKS:
            with _readable(output):
                before, sign, quiet = sign, _sign_of_life(output, run), 0
            if sign in (None, before):
                raise JobError(
                    f"{output.uri}: run {run} says nothing more, and does not hold the folder any "
                    f"more: it has probably been killed. `retake status {output.uri}` says more"
                )
        wait(LOOK_S)


def _sign_of_life(output: Folder, run: str) -> str | None:
    """What changes every 10 s as long as a run lives; None where it does not hold the folder."""
    holder = holder_of(output)
    there = holder is not None and holder.run == run and not holder.is_gone()
    return holder.renewed if there and holder else None


@dataclass
class _Growing:
    """Reads what is new in segments, which only grow.

    Attributes:
        ended: the run has ended.
    """

    output: Folder
    ended: bool = False
    _read: dict[str, int] = field(default_factory=dict)

    def new(self, found: list[tuple[str, int]]) -> list[Event]:
        events: list[Event] = []
        for name, size in found:
            start = self._read.get(name, 0)
            if size <= start:
                continue
            data = self.output.read_range(name, start, size)
            whole = data.rfind(b"\n") + 1  # the rest is of a line that is being written
            self._read[name] = start + whole
            events += events_of(data[:whole])
        return events


@contextmanager
def _readable(output: Folder) -> Iterator[None]:
    """In the block, storage that does not give a file is a message."""
    try:
        yield
    except OSError as error:
        where = f"{output.uri}/{FOLDER}"
        raise Unreadable(f"{where}: {explain(error, where).text}") from error


def _run_of(found: dict[str, list[tuple[str, int]]], run: str | None, output: Folder) -> str:
    """The name of the run that is meant."""
    if not found:
        raise JobError(
            f"{output.uri}: has no logs/*/*.jsonl; give the folder that the job file calls "
            "`output`, once a run has begun in it"
        )
    if run is None:
        return max(found)
    if run not in found:
        near = nearest(run, found, 0.6)
        others = f"did you mean {near}?" if near else f"there are {', '.join(list(found)[-5:])}"
        raise JobError(f"--run {run!r}: {output.uri} has no log of it; {others}")
    return run
