"""What the driver and the stages tell each other while a run goes on, through an actor.

The stages report what happened, that they are there, and that a group is broken; the driver says
whether rows may start. Nothing here may end a run: the actor lies on the driver's node, is started
again when it dies, and is never waited for without a deadline.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster import quiet  # noqa: F401 - before Ray, which reads it when it is imported
from cluster.progress import Event

import ray  # isort: skip
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # isort: skip

ANSWER_S = 10.0
"""The actor has this long to answer; then a stage goes on, and the driver keeps what it knows."""
ALIVE_S = 5.0
"""An owner says so often that it is there."""
PAUSE_S = 1.0

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
    """

    stage: str
    node: str
    pid: int
    seen: float
    broken: str = ""


@dataclass(frozen=True)
class State:
    """What the actor knows.

    Args:
        born: names this life of the actor, whose counts begin at 0.
        now: its clock.
    """

    born: str = ""
    events: Mapping[str, int] = field(default_factory=dict)
    owners: Mapping[str, Owner] = field(default_factory=dict)
    now: float = 0.0


class ControlActor:
    """Holds what both sides have last sent; results do not depend on it."""

    def __init__(self) -> None:
        self.born = uuid.uuid4().hex
        self.events: Counter[str] = Counter()
        self.owners: dict[str, Owner] = {}
        self.word: Word = "go"
        self._now, self._looked = 0.0, time.monotonic()

    def add(self, event: str, times: int) -> None:
        self.events[event] += times

    def here(self, owner: str, stage: str, node: str, pid: int, broken: str) -> None:
        self.owners[owner] = Owner(stage, node, pid, self._clock(), broken)

    def say(self, word: Word) -> None:
        self.word = word

    def heard(self) -> Word:
        return self.word

    def begin(self) -> None:
        """Forget the owners of the wave before, and that their groups were ready."""
        self.owners.clear()
        for event in list(self.events):
            if event.endswith(" ready"):
                del self.events[event]

    def state(self) -> State:
        return State(self.born, dict(self.events), dict(self.owners), self._clock())

    def _clock(self) -> float:
        """Seconds in which this actor was at work: while it was stopped it heard nobody."""
        now = time.monotonic()
        self._now += min(now - self._looked, ALIVE_S)
        self._looked = now
        return self._now


class DriverReport:
    """A `cluster.stages.group.Report` to the driver. It is made in the driver, and sent to stages.

    Args:
        actor: the `ControlActor`.
    """

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def happened(self, event: Event, times: int = 1) -> None:
        self.actor.add.remote(event, times)

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

    def attend(self, stage: str) -> None:
        """Say from now on, in a thread, that this process is there."""
        context = ray.get_runtime_context()
        self._stage, self._reason = stage, ""
        self._me = (context.get_actor_id() or "", context.get_node_id())
        threading.Thread(target=self._attend, daemon=True).start()

    def _attend(self) -> None:
        while True:
            with suppress(Exception):  # the driver is gone, or about to be
                self._here()
            time.sleep(ALIVE_S)

    def _here(self) -> None:
        owner, node = self._me
        self.actor.here.remote(owner, self._stage, node, os.getpid(), self._reason)

    def _word(self) -> Word:
        try:
            return ray.get(self.actor.heard.remote(), timeout=ANSWER_S)
        except ray.exceptions.RayError:
            return "go"


class Control:
    """The driver's side of the actor. No call here fails or waits for long."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
        self.actor = ray.remote(**options)(ControlActor).remote()
        self.report = DriverReport(self.actor)
        self._asked: Any = None
        self._state = State()
        self._before: Counter[str] = Counter()
        self._word: Word = "go"
        self._word_at = 0.0

    def begin(self) -> None:
        """A new wave: rows may start."""
        self.actor.begin.remote()
        self._asked = None  # its answer would name the owners of the wave before
        self._state = State(self._state.born, self._state.events)
        self.say("go")

    def say(self, word: Word) -> None:
        """Have the stages do this; sent again as long as it holds, since the actor may die."""
        now = time.monotonic()
        if word != self._word or now - self._word_at >= PAUSE_S:
            self.actor.say.remote(word)
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
        if self._state.born not in ("", state.born):
            self._before.update(self._state.events)
        self._state = state

    def _known(self) -> State:
        events = self._before + Counter(self._state.events)
        return State(self._state.born, events, self._state.owners, self._state.now)
