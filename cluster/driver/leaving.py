"""When a wave is to take no more rows, though the run goes on."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from cluster.driver.control import Owner, State
from cluster.driver.graph import ROWS_OF_A_GROUP
from cluster.driver.nodes import SILENT_S, Growth, working
from cluster.driver.placing import BACK_S, Placing
from cluster.driver.wave import Wave
from cluster.job import CannotRun
from cluster.layout.placement import Placement
from cluster.layout.work import Amount

NO_GROUP = (
    f"the nodes of the job's groups have left, and none has come with room for one in {BACK_S:g} s"
    ". The results so far are stored; add nodes, and run the same command again to go on"
)


@dataclass
class Leaving:
    """Whether the next wave would do better with what is left of this one.

    Args:
        amount: what is pending in the run.

    Attributes:
        held: why groups are broken that hold what is left; empty where none do.
    """

    wave: Wave
    placement: Placement
    growth: Growth
    placing: Placing
    amount: Amount
    heard: float = field(default_factory=time.monotonic)
    held: str = ""
    all_waiting: int = 0

    def __post_init__(self) -> None:
        self.all_waiting = len(self.wave.waiting)

    def is_time(self, state: State, now: float) -> bool:
        """Whether no more rows are to start in this wave.

        Raises:
            CannotRun: no group can start, or none has a place any more.
        """
        placement = self.placement
        groups = {pool.stage: pool.groups for pool in placement.pools}
        owners = [one for one in state.owners.values() if one.stage in groups]
        on_videos = {pool.stage for pool in placement.pools[1:]}
        if any(one.stage in on_videos and state.now - one.seen < SILENT_S for one in owners):
            self.heard = now
        if now - self.heard >= BACK_S:
            raise CannotRun(NO_GROUP)
        broken = [one for one in owners if one.broken]
        for stage in {owner.stage for owner in broken}:
            of_stage = [owner for owner in broken if owner.stage == stage]
            if len(of_stage) >= groups[stage]:
                raise CannotRun(f"a rank group could not start: {of_stage[0].broken}")
        if self._is_held(state, broken):
            self.placing.left_out.add({owner.node for owner in broken})
            self.held = broken[0].broken
        # Before the first result all that a wave costs would be lost, for each node that comes.
        begun = len(self.wave.waiting) < self.all_waiting
        return bool(self.held) or (begun and self.growth.more(now, self.amount) > 0)

    def _is_held(self, state: State, broken: list[Owner]) -> bool:
        """Whether what is left is with broken groups, and the others, all loaded, have no more."""
        if not broken or self.wave.videos > ROWS_OF_A_GROUP * working(self.placement):
            return False
        pools = self.placement.pools[1:]
        ready = sum(state.events.get(f"{pool.stage} ready", 0) for pool in pools)
        return ready + len(broken) >= working(self.placement)
