"""The plan of a run, made beside its start. It only informs: a run that ends waits some seconds."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress

from cluster.estimate.dataset import Dataset
from cluster.estimate.plan import estimate
from cluster.estimate.rates import rate_of
from cluster.estimate.record import JobPlan, Rate
from cluster.job import CannotRun
from cluster.pending.rows import PendingRows
from jobs.plan.count import Counted, Wanted, count, groups_of
from jobs.prepare import Prepared
from pipeline.media.counts import FrameRule

WAIT_S = 5.0
"""What a run that comes to its end waits for its plan, which a run of seconds may overtake."""


LEAVE_S = 30.0
"""What a run waits for the thread to end: between two tables of a manifest it sees that it may."""


class PlanBeside:
    """Counts in a thread what a run takes of a manifest; the plan follows when the run ends.

    A context manager: after the block the thread has ended, since a process that ends while it
    counts could die of that; but storage that never answers holds no run.
    """

    def __init__(self) -> None:
        self._counted: Counted | None = None
        self._prepared: Prepared | None = None
        self._thread: threading.Thread | None = None
        self._left = threading.Event()

    def __enter__(self) -> PlanBeside:
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        if self._thread:
            self._thread.join(LEAVE_S)

    def begin(self, prepared: Prepared, todo: PendingRows) -> None:
        """Count what a run takes."""
        self._prepared = prepared
        wanted = _wanted(prepared, todo)

        def work() -> None:
            with suppress(Exception):  # then there is no plan
                self._counted = count(prepared.job.files, wanted, lambda: not self._left.is_set())

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def plan(self, gpus: Mapping[str, int]) -> JobPlan | None:
        """The plan; None where it could not be made.

        Args:
            gpus: of the cluster, by kind as Ray calls it. It has hours where all are of one kind
                whose rate is known.
        """
        if self._thread:
            self._thread.join(WAIT_S)
        with suppress(Exception):
            if self._prepared and self._counted:
                return _estimated(self._prepared, self._counted, gpus)
        return None


def _wanted(prepared: Prepared, todo: PendingRows) -> Wanted:
    editing = prepared.job.editing
    return Wanted(
        frames=prepared.most_frames,
        rule=FrameRule.of(prepared.checkpoint),
        how=editing.reconstruction,
        kept=editing.trajectory.keep != "never",
        answered=todo.answered,
        selection=todo.selection,
        limit=todo.limit,
    )


def _estimated(prepared: Prepared, counted: Counted, gpus: Mapping[str, int]) -> JobPlan:
    rate = known_rate(next(iter(gpus))) if len(gpus) == 1 else None
    number = max(1, sum(gpus.values()))
    return estimate(
        prepared.job,
        prepared.checkpoint,
        Dataset(groups_of(counted.kinds), counted.prompts),
        [rate] if rate else [],
        gpus=number,
        gpus_per_node=min(number, 8),
    )


def known_rate(kind: str) -> Rate | None:
    """The rate of a kind of GPU as Ray calls it, which says `A100` of 40 GB and of 80."""
    for name in (kind, kind.removesuffix("G"), f"{kind}-80GB"):
        with suppress(CannotRun):
            return rate_of(name)
    return None
