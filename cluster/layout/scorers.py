"""Where the actors that score edits are: beside the groups, and never in their place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster.accept import measured_kinds
from cluster.job import Job
from cluster.layout.choice import GPUS_OF_CPU_ENCODER

SHARE = 0.1
"""CPUs that each reserves: it gives way to ranks on the same cores. Those of few actors are what
the stages without ranks leave of theirs."""
GPUS_OF_AN_ACTOR = GPUS_OF_CPU_ENCODER
"""By itself there is one for so many GPUs."""


@dataclass(frozen=True)
class Scorers:
    """The actors that score.

    Args:
        actors: how many; 0 for a job that scores nothing.
        gpus: of each.
        left_out: GPUs that groups do not get, by the place of their node among those asked about.
        nodes: Ray's ids of these nodes.
    """

    actors: int = 0
    gpus: float = 0.0
    left_out: Mapping[int, int] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()

    @property
    def device(self) -> str:
        """Of their models, as torch calls it."""
        return "cuda" if self.gpus else "cpu"

    def holds(self, resource: str, node: str) -> float:
        """The most that they reserve of a node."""
        if resource == "CPU":
            return self.actors * SHARE
        out = (self.left_out[place] for place in sorted(self.left_out))
        return float(dict(zip(self.nodes, out, strict=True)).get(node, 0))


NO_SCORERS = Scorers()


def scorers_of(job: Job, gpus: Sequence[int], ids: Sequence[str], *, on_gpus: bool) -> Scorers:
    """The actors that score a job's edits.

    Which GPUs are left out for them depends on the nodes alone, not on what is free: so it is the
    same in each wave, whether they run or not.

    Args:
        gpus: of each node.
        ids: Ray's of each node.
    """
    if not measured_kinds(job.score):
        return Scorers()
    asked, each = job.cluster.scoring.actors, job.cluster.scoring.gpus if on_gpus else 0.0
    actors = asked if isinstance(asked, int) else 1
    if asked == "auto" and on_gpus:
        actors = max(1, sum(gpus) // GPUS_OF_AN_ACTOR)
    if not each or not gpus:
        return Scorers(actors)
    left, size = list(gpus), job.cluster.reconstruction.gpus
    out: dict[int, int] = {}
    for _ in range(math.ceil(actors / math.floor(1 / each + 1e-9))):
        # Of a node on which groups leave some GPUs over, if there is one.
        place = max(range(len(left)), key=lambda node: (left[node] > 0, left[node] % size, -node))
        if left[place]:
            left[place] -= 1
            out[place] = out.get(place, 0) + 1
    return Scorers(actors, each, out, tuple(ids[place] for place in sorted(out)))


def cpus_of(job: Job) -> int:
    """CPUs that many actors need beside those that the stages without ranks leave over."""
    asked = job.cluster.scoring.actors
    if not measured_kinds(job.score) or not isinstance(asked, int):
        return 0
    return max(0, math.ceil(asked * SHARE - 0.9))
