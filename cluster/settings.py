"""Where the work runs: a section of the job file. Importing this costs neither torch nor Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from pipeline.values import check_fields

Groups = Annotated[int, Ge(1)] | Literal["auto"]
Seconds = Annotated[float, Gt(0), Le(1_000_000)]
"""A deadline; what waits for it takes milliseconds in 32 bits, which end after 24 days."""


@dataclass(frozen=True)
class GroupSettings:
    """The rank groups of one stage.

    Args:
        groups: how many groups work side by side; `auto` fills the cluster.
        gpus: N, the ranks of a group, one GPU each (one CPU core each without GPUs).
        ulysses: ranks that share the attention heads; `auto` takes the largest legal degree.
        ring: ranks that pass keys and values around.
        cfg: 2 gives the negative and the positive prompt of classifier-free guidance ranks of
            their own.
    """

    groups: Groups = "auto"
    gpus: Annotated[int, Ge(1), Le(64)] = 1
    ulysses: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    ring: Annotated[int, Ge(1)] = 1
    cfg: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def shape(self) -> tuple[int, int | str, int, int]:
        """What each group is like: gpus, ulysses, ring and cfg."""
        return self.gpus, self.ulysses, self.ring, self.cfg

    def unlike(self, other: GroupSettings) -> str:
        """What of the shape is otherwise in another, as a message shows it."""
        names = ("gpus", "ulysses", "ring", "cfg")
        return ", ".join(
            f"{name} {mine}"
            for name, mine, its in zip(names, self.shape, other.shape, strict=True)
            if mine != its
        )


@dataclass(frozen=True)
class PromptSettings:
    """Where prompts are encoded: never on a GPU that works on videos.

    Args:
        groups: how many text encoders work side by side; `auto` takes one, and on CPUs one for
            every 8 GPUs at work on videos.
        gpus: 1 gives each a GPU of its own; 0 runs it on CPUs, some seconds for a prompt with
            T5-XXL on the cores that a node has for each GPU. `auto` takes 1 where the groups leave
            a GPU over anyway, or the cluster has 32 GPUs or more; else 0.
    """

    groups: Groups = "auto"
    gpus: Literal["auto", 0, 1] = "auto"

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class ScoringSettings:
    """Where edits are scored, beside the groups, which never wait for it.

    Args:
        actors: that score side by side; `auto` takes one for every 8 GPUs at work on videos.
        gpus: of each; a fraction shares one GPU. GPUs for it are left out of the groups' ones.
    """

    actors: Groups = "auto"
    gpus: Annotated[float, Ge(0), Le(1)] = 0.0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class ClusterSettings:
    """How a job uses its machines.

    Args:
        layout: how videos and edits share the groups. `shared`: a group takes a video, inverts it
            and makes its edits; each GPU holds one copy of the weights. `split`: some groups
            invert, the others make edits, so that many edits of one video go to many groups.
            `auto` takes the one that keeps the groups busier by the counted work of the job,
            `shared` where they are equal or share a GPU.
        inversion, reconstruction: the rank groups of the two stages. In the shared layout all are
            as `reconstruction` says, and `inversion` is as it is by default, or the same.
        prompts: the text encoders.
        scoring: what measures the edits.
        device: `auto` takes GPUs where Ray sees any, else CPUs.
        retries: how often a video may be tried again after it killed or hung its group; then it is
            quarantined.
        start_deadline_s: seconds that a group may take to load the checkpoint.
        stall_deadline_s: seconds without any progress in a group at work (a denoising step, a file
            read or written) after which it is killed and rebuilt.
        storage_patience_s: seconds that storage may refuse the results (an outage, a full disk).
            They are kept and tried again meanwhile; then the job ends.
        stop_grace_s: seconds that work under way has to end after Ctrl-C or SIGTERM.
    """

    layout: Literal["auto", "shared", "split"] = "auto"
    inversion: GroupSettings = GroupSettings()
    reconstruction: GroupSettings = GroupSettings()
    prompts: PromptSettings = PromptSettings()
    scoring: ScoringSettings = ScoringSettings()
    device: Literal["auto", "cpu", "gpu"] = "auto"
    retries: Annotated[int, Ge(0), Le(20)] = 2
    start_deadline_s: Seconds = 1800.0
    stall_deadline_s: Seconds = 900.0
    storage_patience_s: Seconds = 1800.0
    stop_grace_s: Annotated[float, Ge(0)] = 20.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.layout == "shared":
            self._check_shared()

    @property
    def asks_for_split(self) -> bool:
        """Whether the two stages have groups that one pool cannot stand for."""
        return self.inversion.groups != "auto" or not self._one_shape

    @property
    def _one_shape(self) -> bool:
        """Whether groups of the shape of `reconstruction` are what `inversion` asks for."""
        return self.inversion.shape in (GroupSettings().shape, self.reconstruction.shape)

    def _check_shared(self) -> None:
        if self.inversion.groups != "auto":
            raise ValueError(
                "layout is shared, where no group only inverts, and inversion.groups is "
                f"{self.inversion.groups}; leave it out (reconstruction.groups says how many there "
                "are), or make layout split"
            )
        if not self._one_shape:
            one, other = self.inversion, self.reconstruction
            raise ValueError(
                "layout is shared, where a group inverts and makes the edits, and inversion has "
                f"{one.unlike(other)}, reconstruction {other.unlike(one)}; leave inversion out, or "
                "make layout split"
            )
