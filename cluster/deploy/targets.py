"""The targets of `retake deploy`: what each writes, and what to type then.

A new target is a module in this room with a function from `Needs` to texts by relative file name,
a line in `TARGETS` and one in `NEXT`, and a section in docs/deploying.md. The command writes the
job file (`JOB`) beside the files of every target.
"""

from __future__ import annotations

from collections.abc import Callable

from cluster.deploy.clouds.aws import aws
from cluster.deploy.clouds.gcp import gcp
from cluster.deploy.clouds.launcher import next_of
from cluster.deploy.clouds.skypilot import skypilot, skypilot_next
from cluster.deploy.docker import docker, docker_next
from cluster.deploy.kuberay import kuberay, kuberay_next
from cluster.deploy.needs import Needs
from cluster.deploy.slurm import slurm, slurm_next

TARGETS: dict[str, Callable[[Needs], dict[str, str]]] = {
    "kuberay": kuberay,
    "slurm": slurm,
    "docker": docker,
    "aws": aws,
    "gcp": gcp,
    "skypilot": skypilot,
}
"""By name: texts by relative file name."""

NEXT: dict[str, Callable[[Needs], list[str]]] = {
    "kuberay": kuberay_next,
    "slurm": slurm_next,
    "docker": docker_next,
    "aws": next_of,
    "gcp": next_of,
    "skypilot": skypilot_next,
}
"""By name: the commands to type in the folder of the files."""
