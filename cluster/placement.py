"""Connects to Ray and finds room for a job's actors, or says what is missing."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster import quiet  # before Ray, which reads its settings when it is imported
from cluster.job import CannotRun, Job
from cluster.settings import GroupSettings

import ray  # isort: skip
import ray.data  # isort: skip


LOCAL = ("", "local")
"""Values of RAY_ADDRESS that name no cluster: one is started here."""
REACH_S = 30.0
"""A cluster's head that takes no connection in this time is not there. Ray would try for a quarter
of an hour, and say nothing."""

Resources = Mapping[str, float]


def start_ray(job: Job) -> Placement:
    """Connect to the cluster that RAY_ADDRESS names, or start one here, and find room for the job.

    A local cluster is given as many CPU slots as the job's actors reserve: they are processes that
    take turns on however many cores there are, and Ray would wait for ever for slots it lacks.

    Raises:
        CannotRun: the cluster cannot be reached, or does not have what the job asks for.
    """
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    slots = 2 + _ranks(job) + job.cluster.prompts.groups
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "")
        if address in LOCAL:
            # Without `local` Ray would join a cluster that `ray start` left on this machine, and
            # refuse to give it CPU slots.
            cores = os.cpu_count() or 1
            _init(address="local", num_cpus=max(cores, slots), include_dashboard=False)
        else:
            _connect(address)
    return place(job, [node["Resources"] for node in ray.nodes() if node["Alive"]], slots)


def _connect(address: str) -> None:
    """Join the cluster at an address. Raises CannotRun where there is none."""
    try:
        _reach(address)
        _init()
    except Exception as error:  # Ray has many kinds: of connections, versions, addresses
        raise CannotRun(
            f"RAY_ADDRESS is {address!r}, and Ray could not connect to it: "
            f"{type(error).__name__}: {error}. Give the address of a running cluster's head, or "
            "unset RAY_ADDRESS to run on this machine"
        ) from error


def _reach(address: str) -> None:
    """Try the port of a `host:port`; of other addresses Ray finds out soon enough itself."""
    host, _, port = address.rpartition(":")
    if host and "/" not in address and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()


def _init(**options: Any) -> None:
    with quiet.held_back():
        ray.init(
            log_to_driver=False,
            configure_logging=False,
            logging_level=logging.CRITICAL,
            **options,
        )


def place(job: Job, nodes: Sequence[Resources], slots: int) -> Placement:
    """Where the job's actors go in a cluster of nodes with such resources. Raises as `start_ray`.

    Args:
        slots: CPUs that the actors take together where there are no GPUs.
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


def configure(job: Job) -> None:
    """Ray Data's settings for few, long, expensive tasks."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    longest = max(job.cluster.inversion_deadline_s, job.cluster.reconstruction_deadline_s)
    # The default of half an hour fails a job whose videos take longer than that.
    context.execution_no_progress_timeout_s = (
        longest * (job.cluster.retries + 2) + job.cluster.start_deadline_s
    )


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
