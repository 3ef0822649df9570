"""How many nodes the groups of a job ask for, and of which size."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from cluster.deploy.gpus import Gpu
from cluster.job import CannotRun
from cluster.layout.packing import Kind, merged, pack
from cluster.settings import ClusterSettings, GroupSettings

CPUS_OF_A_NODE = 8
RAM_OF_A_CPU_GB = 4
CPUS_BESIDE = 2
"""What a job takes beside its groups; the reason is in docs/operating.md."""


@dataclass(frozen=True)
class Pool:
    """Nodes of one kind, which hold the groups of a stage.

    Args:
        name: of the stage: `inversion`, `reconstruction`, `prompts`; `groups` where all stages
            share the nodes.
        nodes: how many.
        gpus: of each node; 0 without GPUs.
        group_gpus: the GPUs, or without them the CPUs, of the largest group there.
        cpus: cores of each node.
        memory_gb: of each node, GiB.
    """

    name: str
    nodes: int
    gpus: int
    group_gpus: int
    cpus: int
    memory_gb: int


@dataclass(frozen=True)
class Size:
    """The nodes of a job.

    Args:
        nodes: whole machines, all alike, that hold all groups.
        gpus, cpus, memory_gb: of each of them.
        pools: where a node may be of any size: what the groups ask for, no more.
    """

    nodes: int
    gpus: int
    cpus: int
    memory_gb: int
    pools: tuple[Pool, ...]


@dataclass(frozen=True)
class _Groups:
    """The groups of a stage; `count` is None where they fill the cluster."""

    stage: str
    count: int | None
    size: int

    def __str__(self) -> str:
        return f"{self.stage}.gpus is {self.size}"


def size_of(
    settings: ClusterSettings, gpu: Gpu, gpus_per_node: int | None, nodes: int | None
) -> Size:
    """The nodes that a job needs.

    Args:
        gpus_per_node: 0 for nodes without GPUs; None for the usual number of the kind.
        nodes: None where the job's groups say it, or for one.

    Raises:
        CannotRun: a group does not fit a node, or what was asked for contradicts the job.
    """
    stages = _stages(settings)
    largest = max(stages, key=lambda one: one.size)
    gpus = _gpus_of_a_node(settings, gpu, gpus_per_node, largest.size)
    if not gpus:
        stages = [one for one in stages if one.stage != "prompts"]
    room = gpus or max(CPUS_OF_A_NODE, largest.size + CPUS_BESIDE)
    if largest.size > room:
        raise CannotRun(
            f"cluster.{largest}, and a node has {gpus}: all GPUs of a group are of one node. Name "
            f"--gpus-per-node {largest.size} or more, or make the groups smaller"
        )
    count = _nodes(stages, room, nodes)
    cpus, memory_gb = _beside(gpus, room, gpu)
    pools = tuple(_pools(stages, count, gpus, room, gpu))
    return Size(count, gpus, cpus, memory_gb, pools)


def _stages(settings: ClusterSettings) -> list[_Groups]:
    def of(stage: str, shape: GroupSettings) -> _Groups:
        return _Groups(stage, None if shape.groups == "auto" else shape.groups, shape.gpus)

    stages = [of("reconstruction", settings.reconstruction)]
    if settings.layout == "split" or (settings.layout == "auto" and settings.asks_for_split):
        stages.insert(0, of("inversion", settings.inversion))
    if settings.prompts.gpus == 1:
        groups = settings.prompts.groups
        stages.append(_Groups("prompts", 1 if groups == "auto" else groups, 1))
    return stages


def _gpus_of_a_node(settings: ClusterSettings, gpu: Gpu, asked: int | None, largest: int) -> int:
    if settings.device == "cpu":
        if asked:
            raise CannotRun(
                f"--gpus-per-node {asked}: the job says cluster.device: cpu; leave one of them out"
            )
        return 0
    if asked == 0 and settings.device == "gpu":
        raise CannotRun(
            "--gpus-per-node 0: the job says cluster.device: gpu; leave one of them out"
        )
    if asked is not None:
        return asked
    return gpu.per_node if gpu.kind else max(gpu.per_node, largest)


def _nodes(stages: list[_Groups], room: int, asked: int | None) -> int:
    """How many whole nodes hold the groups."""
    kinds = merged([Kind(one.size, one.count or 1) for one in stages])
    fewest = max(1, ceil(sum(kind.size * kind.groups for kind in kinds) / room))
    while pack([room] * fewest, kinds) is None:
        fewest += 1
    if all(one.count for one in stages):
        if asked not in (None, fewest):
            raise CannotRun(
                f"--nodes {asked}: the job names its groups, and they fill {fewest} of {room} GPUs "
                "each; leave --nodes out, or make `groups: auto` in the job"
            )
        return fewest
    count = asked or 1
    alone = count * room == 1  # one GPU is shared by the groups of both stages
    if count < fewest and not alone:
        if asked is None:
            return fewest
        raise CannotRun(
            f"--nodes {asked}: the job's groups need {fewest} nodes of {room} GPUs each; name more "
            "nodes, or more GPUs for each with --gpus-per-node"
        )
    return count


def _beside(gpus: int, room: int, gpu: Gpu) -> tuple[int, int]:
    """Cores and GiB of memory of a node with so many GPUs, or without any."""
    if gpus:
        return gpus * gpu.cpus, gpus * gpu.ram_gb
    return room, room * RAM_OF_A_CPU_GB


def _pools(stages: list[_Groups], count: int, gpus: int, room: int, gpu: Gpu) -> list[Pool]:
    if not all(one.count for one in stages):
        cpus, memory_gb = _beside(gpus, room, gpu)
        return [Pool("groups", count, gpus, max(one.size for one in stages), cpus, memory_gb)]
    pools = []
    shared = len(stages) == 1 or stages[0].stage != "inversion"
    for one in stages:
        groups = one.count or 1
        nodes = ceil(groups / (room // one.size))
        held = ceil(groups / nodes) * one.size  # the groups spread over the nodes alike
        cpus, memory_gb = _beside(held if gpus else 0, room, gpu)
        name = "groups" if shared and one.stage == "reconstruction" else one.stage
        pools.append(Pool(name, nodes, held if gpus else 0, one.size, cpus, memory_gb))
    return pools
