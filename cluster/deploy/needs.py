"""What a job needs of machines elsewhere: the same for every target."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import ceil

from cluster.deploy.gpus import Gpu, gpu_of
from cluster.deploy.sizing import Size, size_of
from cluster.deploy.versions import Versions, installed
from cluster.settings import ClusterSettings
from pipeline.locations import EXTRAS, links, protocol

JOB = "job.yaml"
"""The name of the job's file beside the files of a target."""
LABEL = 40
"""Characters of a name: a DNS label has 63 at most, and targets and KubeRay add endings."""
STOP_EXTRA_S = 20
"""Shutting Ray down after a run's `stop_grace_s` takes up to so long."""
PORTS = {"gcs": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}
"""Of Ray's head, by what listens there: Ray's own defaults."""
CREDENTIALS = {
    "s3": (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_ENDPOINT_URL",
    ),
    "gcs": ("GOOGLE_APPLICATION_CREDENTIALS",),
}
"""The variables that storage is opened with, by the extra of Retake that opens it."""
FILES = ("GOOGLE_APPLICATION_CREDENTIALS",)
"""Variables whose value is the path of a file of this machine."""
HUB = "HF_TOKEN"


@dataclass(frozen=True)
class Choices:
    """What a user says beside the job.

    Args:
        gpu_kind: as `cluster.deploy.gpus` names it; "" for any.
        gpus_per_node: 0 for nodes without GPUs; None for the usual number of the kind.
        nodes: how many; None where the job's groups say it, or for one.
        image: of the containers, with registry and tag; "" for the one that `docker` builds.
        spot: machines that may be taken away at any moment, for less money.
        queue: of Kueue (`kuberay`), or the partition (`slurm`); "" for none.
        env: names of environment variables that the job needs.
        zone: where machines are rented: a region (`aws`) or zone (`gcp`); "" for the usual one.
        project: that pays for them (`gcp`).
    """

    gpu_kind: str = ""
    gpus_per_node: int | None = None
    nodes: int | None = None
    image: str = ""
    spot: bool = False
    queue: str = ""
    env: tuple[str, ...] = ()
    zone: str = ""
    project: str = ""


@dataclass(frozen=True)
class AJob:
    """A job, as far as machines elsewhere are concerned.

    Args:
        name: any text.
        text: the job file as they read it: `JOB`, with its locations absolute.
        settings: its section `cluster`.
        locations: of `manifest`, `output` and `checkpoint`, absolute.
    """

    name: str
    text: str
    settings: ClusterSettings
    locations: dict[str, str]


@dataclass(frozen=True)
class Needs:
    """All that the files of a target are made from.

    Args:
        name: of the job, as a DNS label with room for endings.
        job_text: what stands in `JOB`; no secret is in it.
        size: the nodes. Machines that are whole and alike: `size.nodes` with `size.gpus` each.
            Where a node may be of any size (Kubernetes): `size.pools`.
        gpu: the kind of the GPUs, `ANY` where none was named.
        spot, image, queue: as in `Choices`; `image` is never empty.
        versions: of what runs here, and must run there.
        extras: of the package, for the job's storage: `s3`, `gcs`.
        env: names of the variables to pass on; their values stand in no file.
        locations: of `manifest`, `output` and `checkpoint`, absolute.
        local: those of them that are paths of this machine.
        stop_s: seconds that a run takes to end in order, with the shutdown of Ray.
        zone, project: as in `Choices`.
    """

    name: str
    job_text: str
    size: Size
    gpu: Gpu
    spot: bool
    image: str
    queue: str
    versions: Versions
    extras: tuple[str, ...]
    env: tuple[str, ...]
    locations: dict[str, str]
    local: dict[str, str]
    stop_s: int
    zone: str = ""
    project: str = ""
    ports: dict[str, int] = field(default_factory=lambda: dict(PORTS))

    @property
    def command(self) -> tuple[str, ...]:
        """What runs the job on the head; `--wait`, since a lost try may still hold the output."""
        return ("retake", "run", "--wait", JOB)

    @property
    def package(self) -> str:
        """What pip installs: the wheel beside the files, with the extras of the job's storage."""
        extras = f"[{','.join(self.extras)}]" if self.extras else ""
        return f"{self.versions.wheel}{extras}"


def needs_of(job: AJob, choices: Choices) -> Needs:
    """What a job needs.

    Raises:
        CannotRun: a group does not fit a node, or what was asked for contradicts the job.
    """
    gpu = gpu_of(choices.gpu_kind)
    size = size_of(job.settings, gpu, choices.gpus_per_node, choices.nodes)
    protocols = {protocol(links(place)[-1]) for place in job.locations.values()}
    extras = tuple(sorted({EXTRAS[one] for one in protocols if one in EXTRAS}))
    versions = installed(extras)
    variables = [name for extra in extras for name in CREDENTIALS[extra]]
    on_hub = "checkpoint" in job.locations and _on_hub(job.locations["checkpoint"])
    return Needs(
        name=label(job.name),
        job_text=job.text,
        size=size,
        gpu=gpu,
        spot=choices.spot,
        image=choices.image or default_image(versions.retake),
        queue=choices.queue,
        versions=versions,
        extras=extras,
        env=tuple(dict.fromkeys([*variables, *[HUB] * on_hub, *choices.env])),
        locations=dict(job.locations),
        local={key: place for key, place in job.locations.items() if _is_here(place)},
        stop_s=ceil(job.settings.stop_grace_s) + STOP_EXTRA_S,
        zone=choices.zone,
        project=choices.project,
    )


def default_image(version: str) -> str:
    """The image that the target `docker` builds."""
    return f"retake:{version}"


def label(name: str) -> str:
    """A name as Kubernetes, clouds and Slurm take it: a DNS label that begins with a letter."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"retake-{plain}"
    return plain[:LABEL].strip("-")


def warning_of(needs: Needs) -> str:
    """What a user must know of paths that other machines may not see; "" where there are none."""
    if not needs.local:
        return ""
    places = ", ".join(f"{key} {place}" for key, place in needs.local.items())
    return (
        f"these are paths of this machine: {places}. Every node must see them at the same path (a "
        "shared file system); otherwise take object storage"
    )


def _is_here(place: str) -> bool:
    last = links(place)[-1]
    return protocol(last) in ("file", "local") or last.startswith("/")


def _on_hub(checkpoint: str) -> bool:
    """Whether it is `owner/name`: neither a path, nor a URI, nor `embedded`."""
    return "/" in checkpoint and "://" not in checkpoint and not checkpoint.startswith("/")
