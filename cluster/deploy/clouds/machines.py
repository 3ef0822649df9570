"""Which machines of a cloud have which GPUs.

AWS: the types that `describe-instance-types` lists; the tests compare them with that list as moto
5.2.5 has it. Google Cloud: the accelerator-optimized machine types of
https://cloud.google.com/compute/docs/accelerator-optimized-machines, as of November 2026. Where
several types have the same GPUs, the one is here whose memory holds T5-XXL beside the groups.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cluster.deploy.gpus import ANY
from cluster.deploy.needs import Needs, default_image
from cluster.job import CannotRun


@dataclass(frozen=True)
class Machine:
    """A type of machine.

    Args:
        name: the cloud's own.
        cpus: its virtual cores.
    """

    name: str
    cpus: int


AWS = {
    "H200": {8: Machine("p5en.48xlarge", 192)},
    "H100": {1: Machine("p5.4xlarge", 16), 8: Machine("p5.48xlarge", 192)},
    "A100-80GB": {8: Machine("p4de.24xlarge", 96)},
    "A100-40GB": {8: Machine("p4d.24xlarge", 96)},
    "L40S": {
        1: Machine("g6e.4xlarge", 16),
        4: Machine("g6e.12xlarge", 48),
        8: Machine("g6e.48xlarge", 192),
    },
    "L4": {
        1: Machine("g6.2xlarge", 8),
        4: Machine("g6.12xlarge", 48),
        8: Machine("g6.48xlarge", 192),
    },
    "A10G": {
        1: Machine("g5.2xlarge", 8),
        4: Machine("g5.12xlarge", 48),
        8: Machine("g5.48xlarge", 192),
    },
}
AWS_WITHOUT = {
    cpus: Machine(f"m7i.{cpus // 4}xlarge", cpus) for cpus in (8, 16, 32, 48, 64, 96, 192)
}
GCP = {
    "H200": {8: Machine("a3-ultragpu-8g", 224)},
    "H100": {n: Machine(f"a3-highgpu-{n}g", 26 * n) for n in (1, 2, 4, 8)},
    "A100-80GB": {n: Machine(f"a2-ultragpu-{n}g", 12 * n) for n in (1, 2, 4, 8)},
    "A100-40GB": {n: Machine(f"a2-highgpu-{n}g", 12 * n) for n in (1, 2, 4, 8)},
    "L4": {
        1: Machine("g2-standard-8", 8),
        2: Machine("g2-standard-24", 24),
        4: Machine("g2-standard-48", 48),
        8: Machine("g2-standard-96", 96),
    },
}
GCP_WITHOUT = {cpus: Machine(f"n2-standard-{cpus}", cpus) for cpus in (8, 16, 32, 48, 64, 96, 128)}
"""Machines by kind of GPU and number of them; those without GPUs by their cores."""


def machine_of(
    needs: Needs, target: str, kinds: dict[str, dict[int, Machine]], without: dict[int, Machine]
) -> Machine:
    """The machine for the nodes of a job.

    Raises:
        CannotRun: the cloud has none with such GPUs, or with so many.
    """
    check_options(needs, target)
    if not needs.size.gpus:
        fitting = [cpus for cpus in sorted(without) if cpus >= needs.size.cpus]
        if not fitting:
            raise CannotRun(
                f"{target}: a group asks for {needs.size.cpus} cores on one node, and the largest "
                f"machine here has {max(without)}; make the groups smaller"
            )
        return without[fitting[0]]
    check_kind(needs, target, tuple(kinds))
    machines = kinds[needs.gpu.kind]
    if needs.size.gpus not in machines:
        raise CannotRun(
            f"--gpus-per-node {needs.size.gpus}: {target} has machines with "
            f"{', '.join(map(str, sorted(machines)))} {needs.gpu.kind}; name one of these numbers"
        )
    return machines[needs.size.gpus]


def check_options(needs: Needs, target: str) -> None:
    """Refuse options that mean nothing there, and places that are no names.

    Raises:
        CannotRun: with what to do instead.
    """
    if needs.image != default_image(needs.versions.retake):
        raise CannotRun(
            f"--image {needs.image}: {target} installs the packages on each machine; leave it out"
        )
    if needs.queue:
        raise CannotRun(f"--queue {needs.queue}: {target} has no queue; leave it out")
    for option, value in (("--zone", needs.zone), ("--project", needs.project)):
        if not re.fullmatch(r"[a-z0-9:/.-]*", value):
            raise CannotRun(f"{option} {value!r}: expected small letters, digits and `-`")


def check_kind(needs: Needs, target: str, kinds: tuple[str, ...]) -> None:
    """Refuse a job with GPUs whose kind is unknown, or is not to be had there.

    Raises:
        CannotRun: with the kinds that there are.
    """
    if needs.gpu is ANY:
        raise CannotRun(
            f"--gpu-kind is missing: {target} rents machines by their GPUs; name one of "
            f"{', '.join(kinds)}, or --gpus-per-node 0 for none"
        )
    if needs.gpu.kind not in kinds:
        raise CannotRun(
            f"--gpu-kind {needs.gpu.kind}: {target} has no such machines; expected one of "
            f"{', '.join(kinds)}"
        )
