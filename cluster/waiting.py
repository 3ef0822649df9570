"""Names the processes that Ray finds no place for: nothing else says why a run stands still.

`layout.placement` has found room for all of them. But another job may have taken it since, a node
may have left, and of GPUs that several jobs share parts Ray does not say which are whole.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cluster import quiet  # noqa: F401 - before Ray, which reads it when it is imported

import ray  # isort: skip
from ray._private.state import state  # isort: skip

LONG_S = 120.0
"""Ray takes less to start a process, on a cold node too."""
EVERY_S = 10.0
WITHOUT_PLACE = ("DEPENDENCIES_UNREADY", "PENDING_CREATION", "RESTARTING")


def without_place() -> dict[str, str]:
    """The classes of this job's actors that are on no node, by their ids."""
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    found: Mapping[str, Mapping[str, Any]] = state.actor_table(None, job)
    return {
        name: actor["ActorClassName"]
        for name, actor in found.items()
        # One whose constructor runs is pending too, and has an address.
        if actor["State"] in WITHOUT_PLACE and not actor["Address"]["IPAddress"]
    }


@dataclass
class Waiting:
    """What has waited for long.

    Args:
        ask: as `without_place`.
    """

    ask: Callable[[], Mapping[str, str]] = without_place
    since: dict[str, float] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    asked: float = field(default_factory=time.monotonic)

    def note(self, now: float) -> tuple[str, ...]:
        """A sentence on those that have come to wait long since the last one; mostly none."""
        if now - self.asked < EVERY_S:
            return ()
        self.asked = now
        with suppress(Exception):  # Ray's head may be busy: the run does not need this
            waiting = self.ask()
            self.since = {name: self.since.get(name, now) for name in waiting}
            late = [name for name, first in self.since.items() if now - first >= LONG_S]
            new = [name for name in late if name not in self.named]
            self.named.update(new)
            return (sentence(waiting[name] for name in new),) if new else ()
        return ()


def sentence(classes: Iterable[str]) -> str:
    """What a user reads of actors of such classes, as `MapWorker(MapBatches(EditVideos))`."""
    counts = Counter(re.findall(r"\w+", name)[-1] for name in classes)
    names = ", ".join(f"{number} x {name}" for name, number in counts.items())
    return (
        f"Ray has found no place for some processes in {LONG_S:g} s: {names}. Other jobs hold what "
        "they need, or a node has left. Rows wait for them; `ray status` shows what is free. To go "
        "on with what there is, stop the run and run the same command again"
    )
