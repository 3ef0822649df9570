"""Connects to Ray and finds room for a job's actors, or says what is missing."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from cluster import quiet  # before Ray, which reads its settings when it is imported
from cluster.job import CannotRun, Job
from cluster.settings import GroupSettings

import ray  # isort: skip
import ray.data  # isort: skip


def start_ray(job: Job) -> Placement:
    """Connect to the cluster, or start one here, and find room for the job's actors.

    A local cluster is given as many CPU slots as the job's actors reserve: they are processes that
    take turns on however many cores there are, and Ray would wait for ever for slots it lacks.

    Raises:
        CannotRun: the cluster does not have what the job asks for.
    """
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    cluster = job.cluster
    slots = 2 + _ranks(job) + cluster.prompts.groups
    if not ray.is_initialized():
        local = not os.environ.get("RAY_ADDRESS")
        with quiet.held_back():
            ray.init(
                num_cpus=max(os.cpu_count() or 1, slots) if local else None,
                include_dashboard=False if local else None,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.CRITICAL,
            )
    return place(job, ray.cluster_resources(), slots)


def place(job: Job, have: Mapping[str, float], slots: int) -> Placement:
    """Where the job's actors go in a cluster with so many CPUs and GPUs. Raises as `start_ray`."""
    cluster = job.cluster
    gpus = have.get("GPU", 0.0)
    if cluster.device == "cpu" or (cluster.device == "auto" and not gpus):
        if have.get("CPU", 0) < slots:
            raise CannotRun(_too_small(job, "CPUs", slots, have.get("CPU", 0)))
        return Placement("cpu", 0.0)
    needed = _ranks(job) + cluster.prompts.groups * cluster.prompts.gpus
    if gpus >= needed:
        return Placement("gpu", 1.0)
    if gpus >= 1 and _ranks(job) == 2 and not cluster.prompts.gpus:
        return Placement("gpu", 0.5)  # one group of one rank each: the two share a GPU
    raise CannotRun(_too_small(job, "GPUs", needed, gpus))


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


def _ranks(job: Job) -> int:
    stages = (job.cluster.inversion, job.cluster.reconstruction)
    return sum(stage.groups * stage.gpus for stage in stages)


def _too_small(job: Job, what: str, needed: float, have: float) -> str:
    cluster = job.cluster
    groups = ", ".join(
        f"{name} {stage.groups} x {stage.gpus}"
        for name, stage in (
            ("inversion", cluster.inversion),
            ("reconstruction", cluster.reconstruction),
            ("prompts", cluster.prompts),
        )
    )
    return (
        f"the job's groups need {needed:g} {what} ({groups}); the cluster has {have:g}. Set "
        "cluster.inversion.groups, cluster.reconstruction.groups or their gpus lower, or add nodes"
    )
