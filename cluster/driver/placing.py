"""Where the groups of a run go, wave after wave."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from cluster.connection import alive_nodes, placed_on
from cluster.driver.control import Owner
from cluster.driver.nodes import LeftOut, end
from cluster.job import CannotRun, Job
from cluster.layout.placement import Node, Placement, given_address
from cluster.layout.scorers import Scorers
from cluster.layout.work import Amount

BACK_S = 600.0
"""A cluster's nodes that left are waited for so long, where the others have no room for the job."""
FREED_S = 60.0
"""What the wave before reserved is free again by then: its actors end one after the other."""
ENDED_S = 20.0
"""Owners of the wave before that live so long after it are killed. Ray lets them end what they are
at, and a group may load for minutes."""
LOOK_S = 0.2


@dataclass
class Placing:
    """Finds the place of each wave after the first.

    Args:
        amount: what is pending.
        before: the nodes as they were free when the run began.
        beside: what scores edits now: what it reserves goes on while waves of groups follow.
    """

    job: Job
    amount: Amount
    before: Sequence[Node]
    left_out: LeftOut = field(default_factory=LeftOut)
    beside: Callable[[], Scorers] = Scorers

    def again(self, owners: Collection[Owner], on_wait: Callable[[str], bool]) -> Placement | None:
        """Room among the nodes of now, once the wave before is gone.

        Nodes with broken groups get none, if that leaves room.

        Args:
            owners: of the wave before.
            on_wait: called several times a second while it is waited for, with why there is no
                room, where that is known; says whether to wait on.

        Returns:
            None where it is not to be waited for any longer.

        Raises:
            CannotRun: there was no room for too long.
        """
        gc.collect()  # Ray Data leaves cycles with the handles of actors that were started again
        began, ended = time.monotonic(), False
        while True:
            waited = time.monotonic() - began
            if waited >= ENDED_S and not ended:
                end(owners)
                ended = True
            nodes, why = alive_nodes(), ""
            if waited >= FREED_S or not self._reserved(nodes):
                try:
                    return placed_on(self.job, nodes, self.amount, self.left_out.now())
                except CannotRun as error:
                    if self.left_out.now():
                        self.left_out.forget()
                        continue
                    if waited >= BACK_S or not given_address():
                        raise
                    why = f"{error}. Nodes are waited for, {BACK_S:g} s at most; then the run ends"
            if not on_wait(why):
                return None
            time.sleep(LOOK_S)

    def still_holds(self, placement: Placement) -> Placement | None:
        """A placement from before, unless nodes have left or come since."""
        same = {node.id for node in alive_nodes()} == {node.id for node in self.before}
        return placement if same else None

    def _reserved(self, nodes: Sequence[Node]) -> bool:
        """Whether something is taken that was free when the run began, but by scoring."""
        now, scorers = {node.id: node.free for node in nodes}, self.beside()
        return any(
            now[node.id].get(name, 0.0) + scorers.holds(name, node.id) + 1e-6
            < node.free.get(name, 0.0)
            for node in self.before
            if node.id in now
            for name in ("CPU", "GPU")
        )
