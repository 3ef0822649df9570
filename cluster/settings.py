"""Where the work runs: a section of the job file. Importing this costs neither torch nor Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from pipeline.values import check_fields

Seconds = Annotated[float, Gt(0), Le(1_000_000)]
"""A deadline; what waits for it takes milliseconds in 32 bits, which end after 24 days."""


@dataclass(frozen=True)
class GroupSettings:
    """The rank groups of one stage.

    Args:
        groups: how many groups work side by side.
        gpus: N, the ranks of a group, one GPU each (one CPU core each without GPUs).
        ulysses: ranks that share the attention heads; `auto` takes the largest legal degree.
        ring: ranks that pass keys and values around.
        cfg: 2 gives the negative and the positive prompt of classifier-free guidance ranks of
            their own.
    """

    groups: Annotated[int, Ge(1)] = 1
    gpus: Annotated[int, Ge(1), Le(64)] = 1
    ulysses: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    ring: Annotated[int, Ge(1)] = 1
    cfg: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class PromptSettings:
    """Where prompts are encoded: never on a GPU of the other two stages.

    Args:
        groups: how many text encoders work side by side.
        gpus: 1 gives each a GPU of its own; 0 runs it on the CPU, some seconds for a prompt with
            T5-XXL, which keeps up with one or two GPUs at work on videos.
    """

    groups: Annotated[int, Ge(1)] = 1
    gpus: Literal[0, 1] = 0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class ClusterSettings:
    """How a job uses its machines.

    Args:
        inversion, reconstruction: the rank groups of the two stages.
        prompts: the text encoders.
        device: `auto` takes GPUs where Ray sees any, else CPUs.
        retries: how often a video may be tried again after it killed or hung its group; then it is
            quarantined.
        start_deadline_s: seconds that a group may take to load the checkpoint.
        inversion_deadline_s, reconstruction_deadline_s: seconds that a group may take for one video
            (for one lockstep of edits); a group that takes longer is killed and rebuilt.
    """

    inversion: GroupSettings = GroupSettings()
    reconstruction: GroupSettings = GroupSettings()
    prompts: PromptSettings = PromptSettings()
    device: Literal["auto", "cpu", "gpu"] = "auto"
    retries: Annotated[int, Ge(0), Le(20)] = 2
    start_deadline_s: Seconds = 1800.0
    inversion_deadline_s: Seconds = 7200.0
    reconstruction_deadline_s: Seconds = 7200.0

    def __post_init__(self) -> None:
        check_fields(self)
