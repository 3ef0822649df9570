"""How far a run has come: what the stages report, and what the driver passes on of it.

These records lie between the graph and the display, so importing them costs no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Event = Literal[
    "prompts ready",
    "inversion ready",
    "reconstruction ready",
    "editing ready",
    "prompt encoded",
    "video inverted",
]
"""What a stage reports as it happens. The first four: a group of the stage is ready to work."""


@dataclass(frozen=True)
class Groups:
    """The rank groups of a stage.

    Args:
        stage: its section of the settings, `cluster.<stage>`, or `editing` for groups that invert
            and make edits.
        ready: how many have loaded what they need.
        total: how many the job has.
        doing: what one of them did last, as its ranks report; empty where none does.
    """

    stage: str
    ready: int
    total: int
    doing: str = ""


@dataclass(frozen=True)
class Failure:
    """An edit that has none, as its result row names it; `message` is the first line of many."""

    video_id: str | None
    edit_id: str | None
    code: str
    message: str


@dataclass(frozen=True)
class Scored:
    """How far the scoring of a run has come; a row that got its scores again is one more.

    Args:
        edits: to score: stored ones that lack a score. More come as edits are made.
        scored: of these.
        with_errors: scored ones of which some measure failed, as their rows say.
        accepted, rejected: by the job's rules, in this run.
        missing: that this run has given up; the next one tries again.
        seconds: that scoring them took, of all actors together.
        trouble: why some are missing.
    """

    edits: int = 0
    scored: int = 0
    with_errors: int = 0
    accepted: int = 0
    rejected: int = 0
    missing: int = 0
    seconds: float = 0.0
    trouble: str = ""


@dataclass(frozen=True)
class Counts:
    """How far a run has come; what was done before it is not counted.

    Args:
        notes: sentences about the groups and what they leave idle.
        groups: of each stage that has ranks.
        prompts: encoded, or found encoded.
        inverted: videos inverted, or found inverted.
        edited, failed: edits.
        refused: of those that failed, what the check refused: no group has seen them.
        errors: how many failed with each code.
        failures: the first few of each code.
        latest: the last few that failed.
        doing: what the driver is at, where that is not what the groups do.
        starting: nothing can be given back or drained yet.
        gpus: of the cluster as the run began, by kind as Ray calls it.
        scores: of the scoring; None for a job that neither scores nor has rules.
    """

    notes: tuple[str, ...] = ()
    groups: tuple[Groups, ...] = ()
    prompts: int = 0
    inverted: int = 0
    edited: int = 0
    failed: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    latest: tuple[Failure, ...] = ()
    refused: int = 0
    doing: str = ""
    starting: bool = False
    gpus: Mapping[str, int] = field(default_factory=dict)
    scores: Scored | None = None
