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
