"""Which layout a job takes in a cluster, and how many groups each of its pools has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cluster.job import Job
from cluster.layout.packing import Kind, merged, most
from cluster.layout.work import Amount, Work, shared_duration, split_duration
from cluster.settings import ClusterSettings, GroupSettings

BUSY = 0.95
"""The shared layout is taken where it keeps the groups busy for this part of the time; and where
the split one does not take less than this part of its time."""
GPUS_FOR_AN_ENCODER = 32
"""Where there are so many GPUs for each text encoder, one of them costs little."""
GPUS_OF_CPU_ENCODER = 8
"""One text encoder on CPUs keeps up with so many GPUs."""
SPLITS_TRIED = 64


@dataclass(frozen=True)
class Pool:
    """Groups of one stage.

    Args:
        stage: the name of the stage (`cluster.stages.group.GroupStage.name`).
        groups: how many.
        shape: of each.
        size: the GPUs, or without them the CPUs, of one node that each takes; 0 for a text encoder
            on CPUs beside groups on GPUs.
    """

    stage: str
    groups: int
    shape: GroupSettings
    size: int

    @property
    def kind(self) -> Kind:
        return Kind(self.size, self.groups)


@dataclass(frozen=True)
class Choice:
    """A layout with its pools, the text encoders first.

    Args:
        duration: what the run takes, in plain forwards of one GPU; 0 where that is not known.
        one_for_both: the groups of both stages were asked for, and share the only GPU.
    """

    layout: str
    pools: tuple[Pool, ...]
    duration: float = 0.0
    one_for_both: bool = False

    @property
    def working(self) -> int:
        """GPUs at work on videos."""
        return sum(pool.size * pool.groups for pool in self.pools[1:])


@dataclass(frozen=True)
class Room:
    """What a job can have.

    Args:
        free: GPUs, or without them CPUs, of each node.
        on_gpus: whether these are GPUs.
        amount: what the run is going to do, where that is known.
    """

    free: tuple[int, ...]
    on_gpus: bool
    amount: Amount | None = None


def choose(job: Job, room: Room) -> Choice | None:
    """The layout and its pools; None where there is no room for what is asked for."""
    cluster = job.cluster
    if cluster.layout == "shared":
        return _beside_encoders(cluster, room, lambda encoders: _shared(job, room, encoders))
    if cluster.layout == "split" or cluster.asks_for_split:
        apart = _beside_encoders(cluster, room, lambda encoders: _split(job, room, encoders))
        too_many = not room.on_gpus or asked_ranks(cluster) > 2
        if apart or cluster.layout == "split" or too_many:
            return apart
        both = _beside_encoders(cluster, room, lambda encoders: _shared(job, room, encoders))
        return both and replace(both, one_for_both=True)
    together = _beside_encoders(cluster, room, lambda encoders: _shared(job, room, encoders))
    one_machine = not room.on_gpus and len(room.free) == 1
    if not together or not room.amount or one_machine or cluster.reconstruction.groups != "auto":
        return together
    groups = most(room.free, cluster.reconstruction.gpus, at_most=_most_at_once(room))
    ideal = Work.of(job.editing, room.amount.edits_a_video, job.injected).total * room.amount.videos
    if ideal >= BUSY * groups * cluster.reconstruction.gpus * together.duration:
        return together
    apart = _beside_encoders(cluster, room, lambda encoders: _split(job, room, encoders))
    return apart if apart and apart.duration < BUSY * together.duration else together


def asked_ranks(cluster: ClusterSettings) -> int:
    """The fewest ranks of both stages that are asked for."""
    stages = (cluster.inversion, cluster.reconstruction)
    return sum(number(stage.groups) * stage.gpus for stage in stages)


def number(groups: int | str, by_itself: int = 1) -> int:
    """A number of groups that is given, or what `auto` comes to."""
    return groups if isinstance(groups, int) else by_itself


def _beside_encoders(
    cluster: ClusterSettings, room: Room, find: Callable[[int], Choice | None]
) -> Choice | None:
    """A choice with its text encoders.

    Args:
        find: gives the choice beside so many encoders that take a GPU, or a CPU, each.
    """
    prompts = cluster.prompts
    if not room.on_gpus:
        encoders = number(prompts.groups, max(1, len(room.free) // GPUS_OF_CPU_ENCODER))
        return _with(find(encoders), encoders, 1)
    on_gpus = number(prompts.groups)
    beside = find(on_gpus) if prompts.gpus != 0 else None
    if prompts.gpus == 1:
        return _with(beside, on_gpus, 1)
    alone = find(0)
    if beside and alone and prompts.gpus == "auto":
        many = sum(room.free) >= GPUS_FOR_AN_ENCODER * on_gpus
        if beside.working == alone.working or many:
            return _with(beside, on_gpus, 1)
    working = alone.working if alone else 0
    return _with(alone, number(prompts.groups, max(1, working // GPUS_OF_CPU_ENCODER)), 0)


def _with(choice: Choice | None, encoders: int, size: int) -> Choice | None:
    pool = Pool("prompts", encoders, GroupSettings(), size)
    return choice and replace(choice, pools=(pool, *choice.pools[1:]))


ENCODERS = Pool("prompts", 0, GroupSettings(), 0)
"""They take this place in a choice until their number is known."""


def _shared(job: Job, room: Room, encoders: int) -> Choice | None:
    shape = job.cluster.reconstruction
    asked = number(shape.groups, _most_at_once(room))
    if room.on_gpus and room.amount:  # a group takes a whole video
        asked = number(shape.groups, max(1, room.amount.videos))
    groups = most(room.free, shape.gpus, [Kind(1, encoders)] * bool(encoders), asked)
    if groups < number(shape.groups):
        return None
    pool = Pool("editing", groups, shape, shape.gpus)
    duration = 0.0
    if room.amount:
        work = Work.of(job.editing, room.amount.edits_a_video, job.injected)
        duration = shared_duration(work, room.amount.videos, groups) / shape.gpus
    return Choice("shared", (ENCODERS, pool), duration)


def _most_at_once(room: Room) -> int:
    """The most groups: without GPUs one for each node, whose cores its ranks share."""
    return 1 << 30 if room.on_gpus else len(room.free)


def _split(job: Job, room: Room, encoders: int) -> Choice | None:
    """The split layout in which the run takes the least time."""
    cluster = job.cluster
    inversion, reconstruction = cluster.inversion, cluster.reconstruction
    amount = room.amount or Amount(1 << 20, 4 << 20)
    work = Work.of(job.editing, amount.edits_a_video, job.injected)
    scaled = Work(
        work.inversion / inversion.gpus, tuple(one / reconstruction.gpus for one in work.units)
    )
    whole = job.editing.trajectory.keep == "never"
    units = amount.units(job.editing)
    best: Choice | None = None
    for inverting in _numbers_of_inverting(job, room, scaled, amount):
        others = [Kind(inversion.gpus, inverting), *[Kind(1, encoders)] * bool(encoders)]
        useful = max(1, units if room.on_gpus else len(room.free) - inverting)
        asked = number(reconstruction.groups, useful)
        editing = most(room.free, reconstruction.gpus, merged(others), asked)
        if editing < number(reconstruction.groups):
            continue
        duration = split_duration(scaled, max(1, amount.videos), inverting, editing, whole=whole)
        if best is None or duration < best.duration:
            pools = (
                ENCODERS,
                Pool("inversion", inverting, inversion, inversion.gpus),
                Pool("reconstruction", editing, reconstruction, reconstruction.gpus),
            )
            best = Choice("split", pools, duration)
    return best


def _numbers_of_inverting(job: Job, room: Room, work: Work, amount: Amount) -> Sequence[int]:
    """Numbers of groups that may invert: all, or of many those about their share of the work."""
    shape = job.cluster.inversion
    if shape.groups != "auto":
        return [shape.groups]
    room_for = sum(gpus // shape.gpus for gpus in room.free)
    largest = max(1, min(room_for, amount.videos) if room.on_gpus else len(room.free) - 1)
    if largest <= SPLITS_TRIED:
        return range(1, largest + 1)
    share = work.inversion * shape.gpus
    share /= share + work.editing * job.cluster.reconstruction.gpus
    about = min(largest, max(1, round(share * room_for)))
    return range(max(1, about - SPLITS_TRIED // 2), min(largest, about + SPLITS_TRIED // 2) + 1)
