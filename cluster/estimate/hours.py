"""Groups, GPU-hours and wall hours: counted work over the rate of a kind of GPU.

The layout and its pools are those that a run would take in such a cluster
(`cluster/layout/placement.py`). Left out are the start, and what goes on beside the GPUs: reading,
measuring, encoding and writing files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.estimate.memory import RankMemory
from cluster.estimate.rates import CPU, RATES
from cluster.estimate.record import Rate, StagePlan
from cluster.estimate.work import DatasetWork, Unit, VideoWork
from cluster.job import Job
from cluster.layout.choice import Pool
from cluster.layout.placement import Node, Placement, place
from cluster.layout.work import Amount, Work, split_duration
from pipeline.model.parallel.degrees import Degrees

CFG_EFFICIENCY = 0.96
"""Of two cfg ranks, as published for ConsisID (a CogVideoX-5b) on 2 H100 with xDiT: 1.92 times the
speed of one GPU."""
TOKEN_LOSS = 0.37
"""n ranks that split the tokens are n / (1 + 0.37 (n - 1)) times as fast as one. It fits the same
source: 4 GPUs (cfg 2) at 71% and 6 at 54% come out as 70% and 55%. Assumed for all kinds and larger
groups."""
CPUS_A_GPU = 11
"""Of the usual machine with 8 GPUs."""
_SLOW_PROMPTS = (
    "the groups wait for prompts (text encoders: {}): set cluster.prompts.groups higher, or "
    "cluster.prompts.gpus to 1"
)
CORES = 16
"""Of the machine that `cpu` means."""


@dataclass(frozen=True)
class Seconds:
    """Seconds that a group takes for one video.

    Args:
        inversion: with encoding the clip and certifying it.
        units: of its edits, K at a time, with their decoding.
    """

    inversion: float
    units: tuple[float, ...]

    @property
    def editing(self) -> float:
        return sum(self.units)

    @property
    def total(self) -> float:
        return self.inversion + self.editing


@dataclass(frozen=True)
class Hours:
    """What a job takes on so many GPUs.

    Args:
        gpu: hours of GPUs that compute, or of machines for `cpu`.
        wall: hours from the first row to the last.
    """

    layout: str
    stages: tuple[StagePlan, ...]
    gpu: float
    wall: float
    notes: tuple[str, ...]


def token_efficiency(ranks: int) -> float:
    """The speed of ranks that split the tokens over that of as many that work alone."""
    return 1 / (1 + TOKEN_LOSS * (ranks - 1))


def video_seconds(video: VideoWork, rate: Rate, memory: RankMemory, degrees: Degrees) -> Seconds:
    """The seconds of one video in a group of such degrees.

    The VAE is not split: each rank encodes the clip, and the edits are decoded by one rank each.
    """
    alone = degrees.token_ranks * token_efficiency(degrees.token_ranks)
    both = alone * (2 * CFG_EFFICIENCY if degrees.cfg == 2 else 1)
    ranks = degrees.ranks
    if rate.name == CPU:  # the ranks of a group share its machine
        alone = both = 1.0
        ranks = 1
    plain = video.flops.plain / (rate.peak_flops * rate.plain_mfu)
    injected = video.flops.injected / (rate.peak_flops * rate.injected_mfu)
    vae = rate.peak_flops * rate.vae_mfu
    encode = video.flops.encode * memory.encode_work / vae
    decode = video.flops.decode * memory.decode_work / vae

    def seconds(unit: Unit) -> float:
        forwards = unit.forwards.plain * plain + unit.forwards.injected * injected
        # One branch alone cannot be split over two cfg ranks.
        return forwards / both + math.ceil(unit.edits / ranks) * decode

    beside = video.encodes * encode + video.decodes * decode
    of_unit = {unit: seconds(unit) for unit in set(video.units)}
    units = tuple(of_unit[unit] for unit in video.units)
    return Seconds(video.inversion * plain / alone + beside, units)


def hours(
    job: Job,
    work: DatasetWork,
    rate: Rate,
    memory: RankMemory,
    degrees: tuple[Degrees, Degrees],
    prompt_flops: int,
    gpus: int,
    gpus_per_node: int,
) -> Hours:
    """The layout, pools, hours and busy shares of a job.

    Args:
        job: with the sizes of groups that are to be planned.
        memory: of a rank that reconstructs.
        degrees: of the groups that invert, and of those that reconstruct.
        prompt_flops: of the text encoder for all prompts.
        gpus: in machines of `gpus_per_node`; machines themselves for `cpu`.

    Raises:
        CannotRun: there are fewer GPUs than the groups that the job asks for.
    """
    amount = Amount(work.count, work.edits)
    placement = place(job, _nodes(rate, gpus, gpus_per_node), amount)
    encoders, *pools = placement.pools
    sharing = 1.0
    if rate.name == CPU:  # so many groups compute on each machine
        sharing = max(1.0, sum(pool.groups for pool in pools) / gpus)
        rate = replace(rate, peak_flops=rate.peak_flops / sharing)
    inverting, editing = (
        [(one.videos, video_seconds(one, rate, memory, how)) for one in work.videos]
        for how in degrees
    )
    encoding = prompt_flops / _encoder_flops(rate, encoders)
    if placement.layout == "split":
        invert = sum(n * one.inversion for n, one in inverting)
        taken = [invert, sum(n * one.editing for n, one in editing)]
        wall = _split_wall(job, work, taken, pools)
    else:
        taken = [sum(n * one.total for n, one in editing)]
        wall = _shared_wall(editing, taken[0], pools[0])
    notes = placement.notes if work.count else ()
    if encoding / encoders.groups > wall:
        wall = encoding / encoders.groups
        notes = (*notes, _SLOW_PROMPTS.format(encoders.groups))
    pools = [encoders, *pools]
    taken = [encoding, *taken]
    computing = sum(s * pool.size for s, pool in zip(taken, pools, strict=True))
    if rate.name == CPU:
        computing = sum(taken[1:]) / sharing
    return Hours(
        placement.layout,
        tuple(_stage(pool, s, wall, placement) for pool, s in zip(pools, taken, strict=True)),
        computing / 3600,
        wall / 3600,
        notes,
    )


def _stage(pool: Pool, seconds: float, wall: float, placement: Placement) -> StagePlan:
    busy = seconds / (pool.groups * wall) if wall else 0.0
    gpus = pool.size if placement.device == "gpu" else 0
    return StagePlan(pool.stage, pool.groups, gpus, min(1.0, busy))


def _nodes(rate: Rate, gpus: int, gpus_per_node: int) -> list[Node]:
    if rate.name == CPU:
        return [_node(number, {"CPU": float(CORES)}) for number in range(gpus)]
    sizes = [gpus_per_node] * (gpus // gpus_per_node) + [gpus % gpus_per_node]
    return [
        _node(number, {"GPU": float(size), "CPU": float(CPUS_A_GPU * size)})
        for number, size in enumerate(sizes)
        if size
    ]


def _node(number: int, has: dict[str, float]) -> Node:
    return Node(f"{number + 1}", has, has, f"node-{number + 1}")


def _encoder_flops(rate: Rate, encoders: Pool) -> float:
    """FLOPs a second of one text encoder."""
    on = RATES[CPU] if encoders.size == 0 else rate
    return on.peak_flops * on.plain_mfu


def _shared_wall(videos: Sequence[tuple[int, Seconds]], total: float, pool: Pool) -> float:
    """Groups take the videos in turn; in the last turn some have none."""
    count = sum(n for n, _ in videos)
    if not count:
        return 0.0
    longest = max(one.total for _, one in videos)
    return max(longest, math.ceil(count / pool.groups) * total / count)


def _split_wall(
    job: Job, work: DatasetWork, taken: Sequence[float], pools: Sequence[Pool]
) -> float:
    if not work.count:
        return 0.0
    units = max(1, round(work.summed(lambda one: len(one.units)) / work.count))
    invert, edit = (seconds / work.count for seconds in taken)
    whole = job.editing.trajectory.keep == "never"
    mean = Work(invert, (edit / units,) * units)
    return split_duration(mean, work.count, pools[0].groups, pools[1].groups, whole=whole)
