"""Groups at work on videos, step by step: when each has something to do, and when none.

The events of a run are simulated, with the counted work for time: a group that is free takes what
has waited longest.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.layout.work import Work


@dataclass(frozen=True)
class Busy:
    """How groups spent a run.

    Args:
        duration: from the first request to the end of the last one.
        part: of the groups' time, that in which they worked.
    """

    duration: float
    part: float


def shared(works: Sequence[Work], groups: int) -> Busy:
    """Groups that do all of a video each."""
    return _busy(_pool([(0.0, work.total) for work in works], groups), works, groups)


def split(works: Sequence[Work], inverting: int, editing: int) -> Busy:
    """An inversion pool and a reconstruction pool."""
    inverted = _pool([(0.0, work.inversion) for work in works], inverting)
    units = sorted(
        (end, unit) for end, work in zip(inverted, works, strict=True) for unit in work.units
    )
    return _busy(_pool(units, editing), works, inverting + editing)


def _pool(tasks: Sequence[tuple[float, float]], groups: int) -> list[float]:
    """When each task ends, which comes at a time and takes a time; they come in order."""
    free = [0.0] * groups
    ends = []
    for comes, takes in tasks:
        start = max(heapq.heappop(free), comes)
        heapq.heappush(free, start + takes)
        ends.append(start + takes)
    return ends


def _busy(ends: Sequence[float], works: Sequence[Work], groups: int) -> Busy:
    duration = max(ends)
    return Busy(duration, sum(work.total for work in works) / (groups * duration))
