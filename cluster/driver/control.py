"""What the driver and the stages tell each other while a run goes on, through an actor.

The stages report what happened, that they are there, and that a group is broken; the driver says
whether rows may start. Nothing here may end a run: the actor lies on the driver's node, is started
again when it dies, and is never waited for without a deadline.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from cluster import quiet  # noqa: F401 - before Ray, which reads it when it is imported
from cluster.events.record import short_name
from cluster.progress import Event

import ray  # isort: skip
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # isort: skip

ANSWER_S = 10.0
"""The actor has this long to answer; then a stage goes on, and the driver keeps what it knows."""
ALIVE_S = 5.0
"""An owner says so often that it is there."""
PAUSE_S = 1.0
READY = " ready"
"""How the events end that say that a group of a stage has loaded."""

Word = Literal["go", "wait", "leave"]
"""What the driver has the stages do with their next rows."""


@dataclass(frozen=True)
class Owner:
    """An actor that owns a rank group.

    Args:
        stage: its name.
        node: Ray's id of its node.
        pid: of its process.
        seen: when it was last heard, in seconds of the actor's clock.
        broken: why its group cannot start; empty where it can.
        doing: what its ranks did last; empty where they are at no row.
    """

    stage: str
    node: str
    pid: int
    seen: float
    broken: str = ""
    doing: str = ""


@dataclass(frozen=True)
class State:
    """What the actor knows.

    Args:
        born: names this life of the actor, whose counts begin at 0.
        wave: whose owners these are.
        now: its clock.
    """

    born: str = ""
    wave: int = 0
    events: Mapping[str, int] = field(default_factory=dict)
    owners: Mapping[str, Owner] = field(default_factory=dict)
    now: float = 0.0

    def doing(self) -> dict[str, str]:
        """What a group of each stage did last; where there are several, the first that says so."""
        found: dict[str, str] = {}
        for owner in self.owners.values():
            if owner.doing and self.now - owner.seen <= 2 * ALIVE_S:
                found.setdefault(owner.stage, owner.doing)
        return found


class ControlActor:
    """Holds what both sides have last sent; results do not depend on it.

    Owners of a wave that ended may live on for a while: what they say of themselves is of that
    wave, and changes nothing in a later one.
    """

    def __init__(self) -> None:
        self.born = uuid.uuid4().hex
        self.events: Counter[str] = Counter()
        self.owners: dict[str, Owner] = {}
        self._loaded: dict[str, str] = {}
        self.word: Word = "go"
        self.wave = 0
        self._now, self._looked = 0.0, time.monotonic()

    def add(self, wave: int, event: str, times: int, owner: str = "") -> None:
        """Something happened; that a group is ready is of its owner, and of a wave."""
        if event.endswith(READY):
            if not self._is_now(wave):
                return
            if owner:
                self._unload(owner)
                self._loaded[owner] = event
        self.events[event] += times

    def here(self, wave: int, owner: str, stage: str, node: str, pid: int, *more: str) -> None:
        """An owner is there; `more` is `broken` and `doing` of its record."""
        if self._is_now(wave):
            if owner in self.owners and self.owners[owner].pid != pid:
                self._unload(owner)  # Ray has started it again, and its group loads anew
            self.owners[owner] = Owner(stage, node, pid, self._clock(), *more)

    def say(self, wave: int, word: Word) -> None:
        if self._is_now(wave):
            self.word = word

    def heard(self, wave: int) -> Word:
        return self.word if self._is_now(wave) else "leave"

    def state(self) -> State:
        return State(self.born, self.wave, dict(self.events), dict(self.owners), self._clock())

    def _is_now(self, wave: int) -> bool:
        """Whether a wave is the one that runs; the first word of a later one begins it."""
        if wave > self.wave:
            self.wave, self.word = wave, "go"
            self.owners.clear()
            self._loaded.clear()
            self.events = Counter(without_ready(self.events))
        return wave == self.wave

    def _unload(self, owner: str) -> None:
        """The group of an owner is not ready any more."""
        if event := self._loaded.pop(owner, ""):
            self.events[event] -= 1

    def _clock(self) -> float:
        """Seconds in which this actor was at work: while it was stopped it heard nobody."""
        now = time.monotonic()
        self._now += min(now - self._looked, ALIVE_S)
        self._looked = now
        return self._now


def without_ready(events: Mapping[str, int]) -> dict[str, int]:
    """The counts but for those of groups that are ready, which are of one wave."""
    return {event: times for event, times in events.items() if not event.endswith(READY)}


class DriverReport:
    """A `cluster.stages.group.Report` to the driver. It is made in the driver, and sent to stages.

    Args:
        actor: the `ControlActor`.
        wave: the number of the wave whose stages these are.
    """

    def __init__(self, actor: Any, wave: int) -> None:
        self.actor, self.wave = actor, wave
        self._me = ("", "")

    def happened(self, event: Event, times: int = 1) -> None:
        self.actor.add.remote(self.wave, event, times, self._me[0])

    def broken(self, reason: str) -> None:
        self._reason = reason
        self._here()

    def repaired(self) -> None:
        self.broken("")

    def may_start(self) -> bool:
        """Whether the stage may begin a row; waits while the driver has it wait."""
        while (word := self._word()) == "wait":
            time.sleep(PAUSE_S)
        return word != "leave"

    def attend(self, stage: str, doing: Callable[[], str] = str) -> str | None:
        """Say from now on, in a thread, that this process is there; and end with Ray's node.

        Ray ends the workers of a node that died itself, but for those that are about to end when
        it dies: these would wait for work that nobody takes any more.
        """
        context = ray.get_runtime_context()
        self._stage, self._reason, self._doing = stage, "", doing
        self._me = (context.get_actor_id() or "", context.get_node_id())
        threading.Thread(target=self._attend, args=(os.getppid(),), daemon=True).start()
        return short_name(self._me[0]) or None

    def _attend(self, node_process: int) -> None:
        while True:
            with suppress(Exception):  # the driver is gone, or about to be
                self._here()
            time.sleep(ALIVE_S)
            if os.getppid() != node_process:
                os.kill(os.getpid(), signal.SIGKILL)

    def _here(self) -> None:
        owner, node = self._me
        more = (self._reason, self._doing())
        self.actor.here.remote(self.wave, owner, self._stage, node, os.getpid(), *more)

    def _word(self) -> Word:
        try:
            return ray.get(self.actor.heard.remote(self.wave), timeout=ANSWER_S)
        except ray.exceptions.RayError:
            return "go"


class Control:
    """The driver's side of the actor. No call here fails or waits for long."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
        self.actor = ray.remote(**options)(ControlActor).remote()
        self._wave = 0
        self._asked: Any = None
        self._state = State()
        self._before: Counter[str] = Counter()
        self._word: Word = "go"
        self._word_at = 0.0

    @property
    def report(self) -> DriverReport:
        """What the stages of this wave get."""
        return DriverReport(self.actor, self._wave)

    def begin(self) -> None:
        """A new wave: rows may start."""
        self._wave += 1
        self._before = Counter(without_ready(self._before))
        self._state = State(self._state.born, self._wave, without_ready(self._state.events))
        self._word_at = 0.0
        self.say("go")

    def say(self, word: Word) -> None:
        """Have the stages do this; sent again as long as it holds, since the actor may die."""
        now = time.monotonic()
        if word != self._word or now - self._word_at >= PAUSE_S:
            with suppress(ray.exceptions.RayError):
                self.actor.say.remote(self._wave, word)
            self._word_at = now
        self._word = word

    def so_far(self) -> State:
        """What is known, as last answered: the actor may take long to start."""
        with suppress(ray.exceptions.RayError):
            self._asked = self._asked or self.actor.state.remote()
            if ray.wait([self._asked], timeout=0)[0]:
                asked, self._asked = self._asked, None
                self._learn(ray.get(asked))
        return self._known()

    def at_the_end(self) -> State:
        with suppress(ray.exceptions.RayError):
            self._learn(ray.get(self.actor.state.remote(), timeout=ANSWER_S))
        return self._known()

    def _learn(self, state: State) -> None:
        if state.wave < self._wave:  # asked before this wave, or in a new life of the actor
            state = replace(state, wave=self._wave, owners={}, events=without_ready(state.events))
        if self._state.born not in ("", state.born):
            self._before.update(self._state.events)
        self._state = state

    def _known(self) -> State:
        return replace(self._state, events=self._before + Counter(self._state.events))
