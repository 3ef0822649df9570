"""Finds room for a job's actors among the nodes of a cluster, or says what is missing."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.job import CannotRun, Job
from cluster.settings import GroupSettings

Resources = Mapping[str, float]

NVIDIA_GPUS = ("/proc/driver/nvidia/gpus/*", "/dev/nvidia[0-9]*")
"""Where Linux shows one entry for each; some sandboxes have the second alone."""
OTHER_GPUS = ("/dev/kfd", "/dev/dxg")
"""What there is where GPUs are AMD's, or Windows' lent to WSL: how many is not seen there."""
LOCAL = ("", "local")
"""Values of RAY_ADDRESS that name no cluster: one is started here."""


def given_address() -> str:
    """The address of the cluster to join; empty where one is to be started here."""
    address = os.environ.get("RAY_ADDRESS", "")
    return "" if address in LOCAL else address


def check_machine(job: Job) -> None:
    """Whether this machine has room for the job's groups, found out without Ray.

    Where RAY_ADDRESS names a cluster, and where GPUs cannot be counted, nothing is known yet.

    Raises:
        CannotRun: it does not have what the job asks for.
    """
    gpus, cpus = visible_gpus(), max(os.cpu_count() or 1, slots(job))
    if not given_address() and not any(map(os.path.exists, OTHER_GPUS)):
        place(job, [{"GPU": gpus, "CPU": cpus}], slots(job))


def visible_gpus() -> int:
    """The NVIDIA GPUs of this machine that CUDA_VISIBLE_DEVICES leaves, as Ray counts them."""
    there = max(len(glob.glob(pattern)) for pattern in NVIDIA_GPUS)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return there
    return min(there, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))


def place(job: Job, nodes: Sequence[Resources], slots: int) -> Placement:
    """Where the job's actors go in a cluster of nodes with such resources.

    Args:
        slots: CPUs that the actors take together where there are no GPUs.

    Raises:
        CannotRun: the nodes do not have what the job asks for.
    """
    cluster = job.cluster
    gpus, cpus = (sum(node.get(what, 0.0) for node in nodes) for what in ("GPU", "CPU"))
    if cluster.device == "cpu" or (cluster.device == "auto" and not gpus):
        if cpus < slots:
            raise CannotRun(_too_small(job, "CPUs", slots, cpus))
        _check_nodes(job, nodes, "CPU", prompts=1)
        return Placement("cpu", 0.0)
    needed = _ranks(job) + cluster.prompts.groups * cluster.prompts.gpus
    if gpus >= needed:
        _check_nodes(job, nodes, "GPU", prompts=cluster.prompts.gpus)
        return Placement("gpu", 1.0)
    if gpus >= 1 and _ranks(job) == 2 and not cluster.prompts.gpus:
        return Placement("gpu", 0.5)  # one group of one rank each: the two share a GPU
    raise CannotRun(_too_small(job, "GPUs", needed, gpus))


def _check_nodes(job: Job, nodes: Sequence[Resources], what: str, *, prompts: int) -> None:
    """Refuse groups that the nodes have no room for: the actor of a group lies on one node.

    Args:
        what: `CPU` or `GPU`, of which a rank takes one.
        prompts: how many of them a text encoder takes.
    """
    sizes = [("prompts", prompts)] * job.cluster.prompts.groups
    for name, stage in _stages(job):
        sizes += [(name, stage.gpus)] * stage.groups
    free = [node.get(what, 0.0) for node in nodes]
    for name, size in sorted(sizes, key=lambda group: -group[1]):
        room = next((at for at, left in enumerate(free) if left >= size), None)
        if room is None:
            raise CannotRun(_no_room(job, nodes, what, name, size))
        free[room] -= size


@dataclass(frozen=True)
class Placement:
    """Where ranks run.

    Args:
        device: `cpu` or `gpu`.
        gpus: that a rank reserves; half a one where both stages share the only GPU.
    """

    device: str
    gpus: float

    def of(self, settings: GroupSettings) -> dict[str, float]:
        """What the actor that owns a rank group reserves."""
        if self.device == "gpu":
            return {"num_gpus": settings.gpus * self.gpus}
        return {"num_cpus": settings.gpus}


def slots(job: Job) -> int:
    """CPUs that a job's actors take together where there are no GPUs."""
    return 2 + _ranks(job) + job.cluster.prompts.groups


def threads(job: Job) -> int:
    """CPU threads of a rank, where ranks share this machine's cores."""
    return max(1, (os.cpu_count() or 1) // max(1, _ranks(job)))


def _stages(job: Job) -> tuple[tuple[str, GroupSettings], ...]:
    return ("inversion", job.cluster.inversion), ("reconstruction", job.cluster.reconstruction)


def _ranks(job: Job) -> int:
    return sum(stage.groups * stage.gpus for _, stage in _stages(job))


def _too_small(job: Job, what: str, needed: float, have: float) -> str:
    return (
        f"the job's groups need {needed:g} {what} ({_groups(job)}); the cluster has {have:g}. Set "
        "cluster.inversion.groups, cluster.reconstruction.groups or their gpus lower, or add nodes"
    )


def _no_room(job: Job, nodes: Sequence[Resources], what: str, stage: str, size: int) -> str:
    have = [node.get(what, 0.0) for node in nodes]
    return (
        f"a group of cluster.{stage} takes {size} {what}s of one node, and the job's groups "
        f"({_groups(job)}) leave no node so many; the largest node has {max(have):g}, all "
        f"{len(have)} together have {sum(have):g}. Set cluster.{stage}.gpus lower (groups can be "
        f"higher then), have fewer groups, or add a node with {size} {what}s"
    )


def _groups(job: Job) -> str:
    stages = [(name, stage.groups, stage.gpus) for name, stage in _stages(job)]
    prompts = ("prompts", job.cluster.prompts.groups, job.cluster.prompts.gpus)
    return ", ".join(f"{name} {groups} x {gpus}" for name, groups, gpus in (*stages, prompts))
