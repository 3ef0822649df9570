"""What a run is doing and what it waits for, by what has happened so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.errors import counted

if TYPE_CHECKING:
    from cluster.progress import Counts

LOADING = "loading"
ENCODING = "encoding prompts"
INVERTING = "inverting"
EDITING = "editing"


def phase_of(counts: Counts) -> str:
    """What a run is doing, by what has happened so far: the stages work at the same time."""
    if counts.doing:
        return counts.doing
    # Rows that the check refused have failed before any group is there.
    if not counts.edited and any(group.ready < group.total for group in counts.groups):
        return LOADING
    if counts.inverted or counts.edited:
        return EDITING
    return INVERTING if counts.prompts or counts.failed else ENCODING


def waiting_for(phase: str, counts: Counts) -> str:
    """What has to happen before a run comes to its next phase; empty where work goes on."""
    if phase == LOADING:
        ready, total = (sum(getattr(g, n) for g in counts.groups) for n in ("ready", "total"))
        late = [g for g in counts.groups if g.ready < g.total]
        names = [g.stage + (f" {g.ready} of {g.total}" * (g.total > 1)) for g in late]
        return f"{ready} of {counted(total, 'group')}, waiting for {' and '.join(names)}"
    if phase == INVERTING:
        at = [group.doing for group in counts.groups if group.doing]
        return f"the first video: {at[-1]}" if at else ""
    return ""
