"""Looks at an output folder from outside: what its run says, and whether it is alive.

The clocks of two machines may differ. So the age of a sign of life is taken from the time that the
storage gives a file, where it does; and where that is old, or lies in the future, the folder is
watched: a file that changes meanwhile is a sign by any clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from cluster.output.holder import Holder
from cluster.output.lease import FOLDER as LEASES
from cluster.output.lease import RENEW_S, STALE_S, holder_of
from jobs.status.heartbeat import BEAT_S
from jobs.status.record import NAME, WAITING, Status
from pipeline.storage import Folder

FRESH_S = 3 * BEAT_S
"""A sign of life is younger than that, unless storage was slow."""
AHEAD_S = 2.0
"""A sign may lie so far in the future: clocks are never quite the same."""
LONG_S = 3600.0
"""A sign that is older says enough: no clock is so wrong."""
WATCH_S = 2.5 * max(BEAT_S, RENEW_S)
"""So long a folder is watched for a sign."""
LOOK_S = 1.0

Life = Literal["alive", "ended", "killed", "silent", "unknown"]
"""`killed`: its process is gone from this machine; `silent`: no sign came while it was watched."""


@dataclass(frozen=True)
class Seen:
    """What an output folder shows of its run.

    Args:
        status: of the run that held the folder last; None where it wrote none.
        life: whether it is alive.
        holder: who holds the folder; None where nobody does.
        age_s: seconds since the status was written, never negative; None where the clocks differ
            and nobody can tell.
        sign_s: seconds since the last sign of life, of status or lease; None likewise.
        waiting: a run that waits for the folder.
    """

    status: Status | None
    life: Life
    holder: Holder | None = None
    age_s: float | None = None
    sign_s: float | None = None
    waiting: Status | None = None


@dataclass(frozen=True)
class _Glance:
    """One look: the files as they are, and how old each is by the best clock there is."""

    status: Status | None
    holder: Holder | None
    waiting: Status | None
    status_age_s: float | None
    lease_age_s: float | None
    waiting_age_s: float | None

    @property
    def signs(self) -> tuple[object, ...]:
        """What changes as long as the run lives."""
        return (
            self.status and (self.status.run, self.status.updated_at),
            self.holder and (self.holder.token, self.holder.renewed),
        )


def look(output: Folder, on_watch: Callable[[str], None] = lambda text: None) -> Seen:
    """What a folder shows. Takes up to `WATCH_S` where its last sign of life is in doubt.

    Args:
        on_watch: called with a sentence before the folder is watched.

    Raises:
        StorageFailed: storage does not say.
    """
    first = _glance(output)
    if (seen := _certain(first)) is not None:
        return seen
    age = _age_in_words(_sign(first))
    on_watch(f"the last sign of life is {age}; watching for another one, {WATCH_S:.0f} s at most")
    began = time.monotonic()
    while time.monotonic() - began < WATCH_S:
        time.sleep(LOOK_S)
        now = _glance(output)
        if now.signs != first.signs:
            return _certain(now) or _seen(now, "alive", fresh=True)
    return _seen(first, "silent")


def _certain(found: _Glance) -> Seen | None:
    """What a look shows for sure; None where it has to be watched."""
    status, holder = found.status, found.holder
    if holder is None or not holder.run:
        if status is None or status.state == "ended":
            return _seen(found, "ended" if status else "unknown")
        if holder is not None:  # another command has the folder, which the run had not left
            return _seen(found, "silent")
    elif status is not None and status.run == holder.run and status.state == "ended":
        return _seen(found, "ended")  # it is about to leave the folder, or was killed at it
    elif holder.is_gone():
        return _seen(found, "killed")
    sign = _sign(found)
    if sign is not None and sign < FRESH_S and (holder or _before_the_lease(status)):
        return _seen(found, "alive")
    if sign is not None and sign > LONG_S:
        return _seen(found, "silent")
    return None


def _before_the_lease(status: Status | None) -> bool:
    """Whether a status may be that of a living run though nobody holds the folder."""
    return status is not None and status.state != "ended"


def _sign(found: _Glance) -> float | None:
    """The age of the last sign of life; None where a clock is ahead."""
    of_lease = found.lease_age_s if found.holder else None
    ages = [age for age in (_of_holder(found), of_lease) if age is not None]
    plausible = [max(0.0, age) for age in ages if age >= -AHEAD_S]
    return min(plausible, default=None)


def _of_holder(found: _Glance) -> float | None:
    """The age of the status, where it is that of who holds the folder."""
    status, holder = found.status, found.holder
    if status is None or (holder is not None and holder.run != status.run):
        return None
    return found.status_age_s


def _seen(found: _Glance, life: Life, *, fresh: bool = False) -> Seen:
    status, holder = found.status, found.holder
    if status and holder and holder.run and holder.run != status.run and status.run:
        status = None  # that of an earlier run; the one that holds the folder has none yet
    age = found.status_age_s if status else None
    waits = found.waiting_age_s is not None and -AHEAD_S <= found.waiting_age_s < STALE_S
    return Seen(
        status=status,
        life=life,
        holder=holder,
        age_s=None if age is None or age < -AHEAD_S else max(0.0, age),
        sign_s=0.0 if fresh else _sign(found),
        waiting=found.waiting if waits else None,
    )


def _glance(output: Folder) -> _Glance:
    status, age = _read(output, NAME)
    waiting, waiting_age = _read(output, WAITING)
    holder = holder_of(output)
    lease_age = _lease_age(output, holder) if holder else None
    return _Glance(status, holder, waiting, age, lease_age, waiting_age)


def _read(output: Folder, name: str) -> tuple[Status | None, float | None]:
    """A record, and its age in seconds."""
    try:
        status = Status.parse(output.read(name))
    except FileNotFoundError:
        return None, None
    if status is None:
        return None, None
    written = output.modified(name) or status.updated
    return status, (datetime.now(UTC) - written).total_seconds()


def _lease_age(output: Folder, holder: Holder) -> float:
    """Seconds since the lease was renewed."""
    name = max(output.list(LEASES), default="")
    written = output.modified(name) if name else None
    return (datetime.now(UTC) - written).total_seconds() if written else holder.age_s()


def _age_in_words(age_s: float | None) -> str:
    return "of a clock that differs from this one" if age_s is None else f"{age_s:.0f} s old"
