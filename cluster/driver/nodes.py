"""What changes among the nodes of a cluster while a run goes on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from cluster import quiet  # noqa: F401 - before Ray, which reads it when it is imported

import ray  # isort: skip
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # isort: skip

from cluster.connection import alive_nodes
from cluster.driver.control import Owner
from cluster.job import Job
from cluster.layout.placement import Node, Placement, place
from cluster.layout.work import Amount

LOOK_S = 10.0
SETTLED_S = 20.0
"""Nodes come one after the other: more groups are worth a new wave when no other came so long."""
BETWEEN_S = 180.0
"""Waves that end for new nodes lie so far apart: groups load anew for each."""
AGAIN_S = 900.0
"""A node whose groups broke is tried again so long after, and twice as long after each next time:
what it lacked may be there, but each try costs all groups a new start."""
SILENT_S = 120.0
"""An owner that says nothing for so long is stopped, or its node is."""


@dataclass
class LeftOut:
    """The nodes that get no group for a while, since groups on them could not start."""

    clock: Callable[[], float] = time.monotonic
    _times: Counter[str] = field(default_factory=Counter)
    _until: dict[str, float] = field(default_factory=dict)

    def add(self, nodes: Collection[str]) -> None:
        """Leave nodes out, each for twice as long as the time before."""
        for node in set(nodes) - self.now():
            self._until[node] = self.clock() + AGAIN_S * 2 ** self._times[node]
            self._times[node] += 1

    def now(self) -> frozenset[str]:
        """The ids of those that are left out now."""
        return frozenset(node for node, until in self._until.items() if self.clock() < until)

    def forget(self) -> None:
        """Have all of them back, as where the others have no room for the job."""
        self._until.clear()


@dataclass
class Growth:
    """Finds out that a new wave would have more groups.

    Args:
        before: the nodes as they were free when the wave began.
        look: the nodes as they are now.
        left_out: those that a new wave would not use.
    """

    job: Job
    placement: Placement
    before: Sequence[Node]
    look: Callable[[], Sequence[Node]] = alive_nodes
    left_out: LeftOut = field(default_factory=LeftOut)
    began: float = field(default_factory=time.monotonic)
    asked: float = field(default_factory=time.monotonic)
    since: float | None = None
    groups: int = 0

    def more(self, now: float, amount: Amount) -> int:
        """How many groups a new wave would have more; 0 where it is not worth one now."""
        if now - self.asked < LOOK_S or now - self.began < BETWEEN_S:
            return 0
        self.asked = now
        with suppress(Exception):  # Ray's head may be busy, and the job may not fit what is left
            groups = working(place(self.job, self._would_have(), amount))
            if groups != self.groups:
                self.groups, self.since = groups, now
            gained = groups - working(self.placement)
            if self.since is not None and now - self.since >= SETTLED_S:
                return max(0, gained)
        return 0

    def _would_have(self) -> list[Node]:
        """The nodes, with what this run itself reserves counted as free."""
        before, out = {node.id: node for node in self.before}, self.left_out.now()
        there = [node for node in self.look() if node.id not in out]
        return [_freest(node, before.get(node.id, node)) for node in there]


def _freest(now: Node, before: Node) -> Node:
    names = {*now.free, *before.free}
    free = {n: max(now.free.get(n, 0.0), before.free.get(n, 0.0)) for n in names}
    return replace(now, free={n: min(v, now.has.get(n, v)) for n, v in free.items()})


def working(placement: Placement) -> int:
    """The groups that work on videos."""
    return sum(pool.groups for pool in placement.pools[1:])


def end_silent(
    owners: Iterable[Owner], now: float, ended: Collection[tuple[str, int]] = ()
) -> list[tuple[str, int]]:
    """Kill the owners' processes that are stopped; their rows come back missing.

    Args:
        now: in the time of `Owner.seen`.
        ended: node and process id of those that were killed before. They stand among the owners
            until they are started again, and another process may have their id by then.

    Returns:
        Those that it killed.
    """
    silent = [
        one for one in owners if now - one.seen >= SILENT_S and (one.node, one.pid) not in ended
    ]
    end(silent)
    return [(one.node, one.pid) for one in silent]


def end(owners: Iterable[Owner]) -> None:
    """Kill the owners' processes, each on its node.

    Nothing is waited for: a node that is stopped itself will be found dead by Ray.
    """
    for one in owners:
        with suppress(Exception):  # its node may be gone
            there = NodeAffinitySchedulingStrategy(one.node, soft=False)
            kill.options(scheduling_strategy=there).remote(one.pid)


@ray.remote(num_cpus=0, max_retries=0)
def kill(pid: int) -> None:
    """Kill a worker of Ray on this node; another process may have its number by now."""
    import os
    import signal
    from pathlib import Path

    with suppress(OSError):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
            os.kill(pid, signal.SIGKILL)
