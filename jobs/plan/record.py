"""What `retake plan` has found, before it is shown. Importing this costs neither torch nor Ray."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.estimate.record import JobPlan
from jobs.plan.clips import Seen
from jobs.plan.count import Counted


@dataclass(frozen=True)
class Saving:
    """A change of a setting that makes a job cheaper, and its edits other ones.

    Args:
        change: as `--set` takes it.
        share: of all FLOPs that it saves.
    """

    change: str
    share: float


@dataclass(frozen=True)
class Planned:
    """The plan of a job.

    Args:
        job: as the user named it.
        checkpoint: as the job names it.
        plan: of all that is pending.
        counted: the same as the manifest has it.
        trial: the plan of the first videos alone; None where these are all.
        seen: what opening a few videos showed.
        done, quarantined: edits that are left out, since an earlier run has answered them.
        savings: the changes that save most.
        notes: what a reader must know.
    """

    job: str
    checkpoint: str
    plan: JobPlan
    counted: Counted
    trial: JobPlan | None
    seen: Seen
    done: int = 0
    quarantined: int = 0
    savings: tuple[Saving, ...] = ()
    notes: tuple[str, ...] = ()
