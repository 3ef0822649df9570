"""The kinds of faults, and how each is brought about in a run that is at work."""

from __future__ import annotations

import os
import random
import resource
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.fault_proxy import Fault, FaultProxy
from tests.faults.scene.nodes import Nodes
from tests.faults.scene.processes import Family, Process, process
from tests.faults.scene.runs import Run

MEMORY = 64 << 20
"""A rank that is to run out of memory may take at most so many bytes more."""


GROUPS = ("rank", "owner")
"""The processes of rank groups, which are replaced when they die."""


@dataclass
class Scene:
    """What faults can reach.

    Args:
        family: the processes of the runs, and of the cluster where it is of the test.
        nodes: the cluster, where it is not the run's own.
        workers: how many worker nodes it is to have.
        disk: a folder on the file system of the output, where that can be filled.
        storage: what stands before the storage, where that is remote.
    """

    draw: random.Random
    family: Family
    nodes: Nodes | None = None
    workers: int = 0
    disk: Path | None = None
    storage: FaultProxy | None = None
    run: Run | None = None

    def pick(self, role: str) -> Process | None:
        there = self.family.of_role(role)
        if role == "raylet" and self.nodes:
            there = [one for one in there if one.pid in self.nodes.raylets]
        return self.draw.choice(there) if there else None

    def driver(self) -> Process | None:
        return process(self.run.process.pid) if self.run and not self.run.ended else None


@dataclass
class Active:
    """A fault that was brought about.

    Args:
        of: what it hit.
        lift: ends it.
        back: whether what it took is there again.
    """

    of: str
    lift: Callable[[], None] = field(default=lambda: None)
    back: Callable[[], bool] = field(default=lambda: True)


Bring = Callable[[Scene], Active | None]


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Args:
        bring: brings it about; None where there is nothing that it could hit now.
        lasts_s: between which seconds it lasts, until it is lifted.
        weight: how often it is drawn, beside the others.
        ends_run: whether the run may end with it.
        needs: the part of the scene that it needs.
    """

    bring: Bring
    lasts_s: tuple[float, float] = (0.0, 0.0)
    weight: float = 1.0
    ends_run: bool = False
    needs: str = "family"


def kill(role: str) -> Bring:
    def bring(scene: Scene) -> Active | None:
        one = scene.driver() if role == "driver" else scene.pick(role)
        back = _back(scene, role) if role in GROUPS else None
        active = _sent(one, signal.SIGKILL)
        if active and back:
            active.back = back
        return active

    return bring


def pause(role: str) -> Bring:
    """Stopped with SIGSTOP, and going on when it is lifted."""

    def bring(scene: Scene) -> Active | None:
        one = scene.driver() if role == "driver" else scene.pick(role)
        active = _sent(one, signal.SIGSTOP)
        if active and one:
            active.lift = lambda: _send(one, signal.SIGCONT)
        return active

    return bring


def ask_to_end(number: signal.Signals) -> Bring:
    return lambda scene: _sent(scene.driver(), number)


def stop_for_good(role: str) -> Bring:
    """Stopped with SIGSTOP; whoever waits for it must end it."""

    def bring(scene: Scene) -> Active | None:
        one, back = scene.pick(role), _back(scene, role)
        active = _sent(one, signal.SIGSTOP)
        if active and one:
            active.back = lambda: not one.runs and back()
        return active

    return bring


def kill_node(scene: Scene, at_work_in: str = "") -> Active | None:
    """A worker node lost as a cloud loses it; another one comes when it is lifted.

    Args:
        at_work_in: only a node with a group of this stage; any node by default.
    """
    one, back = _node(scene, at_work_in), _back(scene, "owner")
    active = _sent(one, signal.SIGKILL)
    if active and one and scene.nodes:
        active.back = back
        scene.nodes.raylets.remove(one.pid)
        active.lift = lambda: fill_up(scene)
    return active


def _node(scene: Scene, at_work_in: str) -> Process | None:
    if not at_work_in or scene.nodes is None:
        return scene.pick("raylet")
    for raylet in filter(None, map(process, scene.nodes.raylets)):
        if any(at_work_in in one.command for one in scene.family.below(raylet)):
            return raylet
    return None


def freeze_node(scene: Scene) -> Active | None:
    """All processes of a worker node stopped at once, as by a live migration."""
    raylet = scene.pick("raylet")
    active = _sent(raylet, signal.SIGSTOP)
    if not active or not raylet:
        return active
    frozen = [raylet, *scene.family.below(raylet)]
    for one in frozen[1:]:
        _send(one, signal.SIGSTOP)

    def lift() -> None:
        for one in frozen:
            _send(one, signal.SIGCONT)

    active.lift = lift
    return active


def remove_node(scene: Scene) -> Active | None:
    """A worker node that leaves in order; another one comes when it is lifted."""
    one = scene.pick("raylet")
    if one is None or scene.nodes is None:
        return None
    title, back = str(one), _back(scene, "owner")
    scene.nodes.remove(one.pid)
    return Active(title, lambda: fill_up(scene), back)


def fill_up(scene: Scene) -> None:
    """Bring the cluster back to as many worker nodes as it is to have."""
    assert scene.nodes
    for raylet in list(scene.nodes.raylets):
        one = process(raylet)
        if one is None or not one.runs:
            scene.nodes.raylets.remove(raylet)
    while len(scene.nodes.raylets) < scene.workers:
        scene.nodes.add()


def refuse_memory(scene: Scene) -> Active | None:
    """A rank whose next large allocations fail, wherever they are asked for."""
    one = scene.pick("rank")
    if one is None:
        return None
    try:
        pages = int(Path(f"/proc/{one.pid}/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + scene.draw.randrange(MEMORY)
        before = resource.prlimit(one.pid, resource.RLIMIT_AS)
        resource.prlimit(one.pid, resource.RLIMIT_AS, (limit, before[1]))
    except OSError:  # it is gone
        return None

    def lift() -> None:
        with suppress(OSError):
            resource.prlimit(one.pid, resource.RLIMIT_AS, before)

    return Active(str(one), lift)


def fill_disk(scene: Scene) -> Active | None:
    assert scene.disk
    filler = scene.disk / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return Active(str(filler), lambda: filler.unlink(missing_ok=True))


def storage(share: float, *faults: Fault) -> Bring:
    """Some of the requests, or all, that fail so."""

    def bring(scene: Scene) -> Active | None:
        assert scene.storage
        scene.storage.now_and_then(scene.draw.randrange(1 << 30), share, faults)
        return Active(", ".join(faults), scene.storage.heal)

    return bring


def storage_down(scene: Scene) -> Active | None:
    assert scene.storage
    scene.storage.down()
    return Active("connections are refused", scene.storage.up)


KINDS: Mapping[str, Kind] = {
    "rank killed": Kind(kill("rank"), weight=3),
    "rank paused": Kind(pause("rank"), (0.5, 10), weight=2),
    "rank stopped for good": Kind(stop_for_good("rank"), weight=0.5),
    "rank out of memory": Kind(refuse_memory, (1, 10), weight=2),
    "owner killed": Kind(kill("owner"), weight=2),
    "owner paused": Kind(pause("owner"), (0.5, 10), weight=2),
    "helper actor killed": Kind(kill("helper"), weight=3),
    "helper actor paused": Kind(pause("helper"), (0.5, 10), weight=2),
    "driver killed": Kind(kill("driver"), weight=1.5, ends_run=True),
    "driver paused": Kind(pause("driver"), (0.5, 10), weight=2),
    "driver stopped with SIGTERM": Kind(ask_to_end(signal.SIGTERM), ends_run=True),
    "driver stopped with SIGINT": Kind(ask_to_end(signal.SIGINT), weight=0.5, ends_run=True),
    "node killed": Kind(kill_node, (1, 15), weight=1.5, needs="nodes"),
    "node that inverts killed": Kind(
        partial(kill_node, at_work_in="InvertVideos"), (1, 15), 0.5, needs="nodes"
    ),
    "node that edits killed": Kind(
        partial(kill_node, at_work_in="ReconstructEdits"), (1, 15), 0.5, needs="nodes"
    ),
    "node frozen": Kind(freeze_node, (0.5, 4), weight=1.5, needs="nodes"),
    "node left and came": Kind(remove_node, (1, 15), weight=0.5, needs="nodes"),
    "disk full": Kind(fill_disk, (0.5, 15), weight=8, needs="disk"),
    "storage answers 503": Kind(storage(0.6, Fault.STATUS), (0.5, 15), 4, needs="storage"),
    "storage answers 503 to all": Kind(storage(1, Fault.STATUS), (0.5, 20), 2, needs="storage"),
    "storage resets connections": Kind(
        storage(0.6, Fault.RESET, Fault.LOST), (0.5, 15), 4, needs="storage"
    ),
    "storage stalls": Kind(
        storage(1, Fault.STALL, Fault.HALF_STALL), (0.5, 10), 3, needs="storage"
    ),
    "storage takes no uploads": Kind(
        storage(1, Fault.NO_CONTINUE, Fault.UNREAD), (0.5, 20), 3, needs="storage"
    ),
    "storage cuts": Kind(storage(0.6, Fault.CUT_UPLOAD, Fault.CUT), (0.5, 10), 4, needs="storage"),
    "storage down": Kind(storage_down, (0.5, 20), 2, needs="storage"),
}


def possible(scene: Scene) -> list[str]:
    """The kinds that this scene allows."""
    return [name for name, kind in KINDS.items() if getattr(scene, kind.needs) is not None]


def _back(scene: Scene, role: str) -> Callable[[], bool]:
    """Whether there are as many processes of a role as there are now."""
    before = len(scene.family.of_role(role))
    return lambda: len(scene.family.of_role(role)) >= before


def _sent(one: Process | None, number: signal.Signals) -> Active | None:
    if one is None:
        return None
    title = str(one)
    return Active(title) if _send(one, number) else None


def _send(one: Process, number: signal.Signals) -> bool:
    if not one.runs:
        return False
    try:
        os.kill(one.pid, number)
    except ProcessLookupError:
        return False
    return True
