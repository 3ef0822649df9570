"""How what happens in the stages comes to the driver: through an actor that keeps count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cluster import quiet  # noqa: F401 - before Ray, which reads it when it is imported
from cluster.progress import Event

import ray  # isort: skip

ANSWER_S = 10.0
"""At the end of a run the tally has this long to answer."""


class Tally:
    """An actor that holds what the stages report to the driver; results do not depend on it."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self.reason = ""

    def add(self, event: Event, times: int) -> None:
        self.events[event] += times

    def so_far(self) -> dict[str, int]:
        return dict(self.events)

    def set_reason(self, reason: str) -> None:
        self.reason = reason

    def broken(self) -> str:
        return self.reason


@dataclass(frozen=True)
class DriverReport:
    """A `cluster.stages.group.Report` to the driver through its `Tally`."""

    tally: Any

    def happened(self, event: Event, times: int = 1) -> None:
        self.tally.add.remote(event, times)

    def broken(self, reason: str) -> None:
        ray.get(self.tally.set_reason.remote(reason))


class Events:
    """The driver's view of the tally. Without it a run goes on as well, so no failure gets out."""

    def __init__(self) -> None:
        self.tally = ray.remote(num_cpus=0)(Tally).remote()
        self.known: Mapping[str, int] = {}
        self._asked: Any = None

    def so_far(self) -> Mapping[str, int]:
        """How often each event happened, as last answered: the actor may take long to start."""
        with suppress(ray.exceptions.RayError):
            self._asked = self._asked or self.tally.so_far.remote()
            if ray.wait([self._asked], timeout=0)[0]:
                asked, self._asked = self._asked, None
                self.known = ray.get(asked)
        return self.known

    def at_the_end(self) -> Mapping[str, int]:
        with suppress(ray.exceptions.RayError):
            self.known = ray.get(self.tally.so_far.remote(), timeout=ANSWER_S)
        return self.known

    def reason(self) -> str:
        """Why a stage's ranks cannot work at all; empty where none reported so."""
        with suppress(ray.exceptions.RayError):
            return str(ray.get(self.tally.broken.remote(), timeout=ANSWER_S))
        return ""
