"""A job on one machine with Docker; the image is also the one that `kuberay` takes by default."""

from __future__ import annotations

import csv
import io
import posixpath
import shlex
from typing import Any

from cluster.deploy.commented import Why, commented
from cluster.deploy.needs import FILES, JOB, Needs
from cluster.deploy.versions import CUDA, UV
from cluster.job import CannotRun
from pipeline.locations import links

BASE = f"nvidia/cuda:{CUDA}.2-base-ubuntu24.04"
USER = 10001
"""No user of the base image, and none that a machine is likely to have."""
MOUNTED = "/job"
CACHE = "/cache"
REQUIREMENTS = "requirements.txt"
SHM_PART = 0.4
"""Of a machine's memory: Ray keeps 30% for its objects there, NCCL and torch some more."""


def docker(needs: Needs) -> dict[str, str]:
    """`Dockerfile` with its `requirements.txt`, and `compose.yaml`, which runs the job.

    Raises:
        CannotRun: the job asks for more than one machine.
    """
    if needs.size.nodes > 1:
        raise CannotRun(
            f"docker brings up one machine, and the job asks for {needs.size.nodes}: take another "
            "target, or name more GPUs with --gpus-per-node"
        )
    return {
        "Dockerfile": dockerfile(needs),
        REQUIREMENTS: needs.versions.constraints,
        ".dockerignore": f"*\n!{REQUIREMENTS}\n!*.whl\n",
        "compose.yaml": commented(
            compose(needs),
            f"Runs the job {needs.name} on this machine; run.sh does without compose.",
        ),
        "run.sh": docker_run(needs),
    }


def docker_next(needs: Needs) -> list[str]:
    source = shlex.quote(needs.versions.source or "FOLDER_OF_RETAKES_SOURCE")
    commands = [
        f"pip wheel --no-deps --wheel-dir . {source}",
        f"docker build --tag {needs.image} .",
    ]
    if "output" not in needs.local:
        return [*commands, "docker compose up"]
    # Docker would make the folder, as root.
    output = shlex.quote(needs.local["output"])
    return [*commands, f"mkdir -p {output}", "RETAKE_USER=$(id -u):$(id -g) docker compose up"]


def dockerfile(needs: Needs) -> str:
    values = {
        "BASE": BASE,
        "CUDA": CUDA,
        "TORCH": needs.versions.torch,
        "UV": UV,
        "PYTHON": needs.versions.python,
        "REQUIREMENTS": REQUIREMENTS,
        "WHEEL": needs.versions.wheel,
        "USER": str(USER),
        "CACHE": CACHE,
    }
    text = DOCKERFILE
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


DOCKERFILE = """\
# Retake, Ray and torch for NVIDIA GPUs, at the versions that wrote this file.
#
#   pip wheel --no-deps --wheel-dir . FOLDER_OF_RETAKES_SOURCE
#   docker build --tag retake:VERSION .
#
# What changes least comes first, so that a new version of Retake builds in seconds.

# torch @TORCH@ is built with CUDA @CUDA@, and its wheels bring CUDA's libraries. This base has
# what is left: the settings by which the container gets the GPUs, and libraries for older drivers.
FROM @BASE@

# Python of exactly this version (the base's own is another), in one static program that has no
# packages of the system.
COPY --from=ghcr.io/astral-sh/uv:@UV@ /uv /usr/local/bin/uv
ENV UV_PYTHON_INSTALL_DIR=/opt/python UV_LINK_MODE=copy UV_NO_CACHE=1
RUN uv venv --python @PYTHON@ /opt/retake
ENV VIRTUAL_ENV=/opt/retake PATH=/opt/retake/bin:$PATH

# Every package at its exact version: some 10 GB, most of them torch's. No git, no ffmpeg: videos
# are read by PyAV, which has its own.
COPY @REQUIREMENTS@ /opt/@REQUIREMENTS@
RUN uv pip install --requirement /opt/@REQUIREMENTS@

# Not root. The folders can be written by any user, for `docker run --user`; HOME and USER are set
# for users whom the image does not know.
RUN useradd --create-home --uid @USER@ retake \\
    && mkdir --mode=1777 @CACHE@ \\
    && chmod 1777 /home/retake
ENV HOME=/home/retake USER=retake PYTHONUNBUFFERED=1 \\
    RETAKE_CACHE=@CACHE@/retake HF_HOME=@CACHE@/huggingface

COPY @WHEEL@ /opt/@WHEEL@
RUN uv pip install --no-deps /opt/@WHEEL@

USER @USER@
WORKDIR /home/retake
# No ENTRYPOINT: KubeRay starts Ray with commands of its own.
CMD ["retake", "--help"]
"""


def compose(needs: Needs) -> dict[str, Any]:
    """The compose file as values, with why each is so."""
    mine = "output" in needs.local
    user = "${RETAKE_USER:?who writes the output, as 1000:1000}" if mine else f"{USER}"
    service: dict[str, Any] = {
        "image": needs.image,
        "build": ".",
        "command": ["retake", "run", "--wait", f"{MOUNTED}/{JOB}"],
        "user": Why(
            user,
            "Who writes the output: RETAKE_USER=$(id -u):$(id -g) docker compose up makes it you.",
        ),
        "init": Why(True, "Ray's processes leave children, which someone must wait for."),
        "shm_size": Why(
            f"{int(needs.size.memory_gb * SHM_PART)}gb",
            "Ray's objects and NCCL use shared memory; a container has 64 MB by itself.",
        ),
        "stop_grace_period": Why(
            f"{needs.stop_s}s",
            "`docker compose stop` ends the run in order: cluster.stop_grace_s, and 20 s for Ray.",
        ),
    }
    if needs.env:
        service["environment"] = Why(
            list(needs.env), "Names only: their values come from your environment."
        )
    folders = [
        {"type": "bind", "source": one, "target": one} | ({} if writes else {"read_only": True})
        for one, writes in [(place.replace("$", "$$"), writes) for place, writes in mounts(needs)]
    ]
    keys = [
        Why(
            f"${{{name}:-/dev/null}}:${{{name}:-/dev/null}}:ro",
            f"The file of {name}, where it is set. The container's user must be able to read it.",
        )
        for name in _files(needs)
    ]
    service["volumes"] = [
        f"./{JOB}:{MOUNTED}/{JOB}:ro",
        Why(f"cache:{CACHE}", "Checkpoints that were fetched; kept between runs."),
        *keys,
        *folders,
    ]
    if needs.size.gpus:
        device = {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
        service["deploy"] = Why(
            {"resources": {"reservations": {"devices": [device]}}},
            "All GPUs; a number instead of `all` gives it so many. Needs NVIDIA's container "
            "toolkit.",
        )
    return {"name": needs.name, "services": {"retake": service}, "volumes": {"cache": {}}}


def docker_run(needs: Needs) -> str:
    """A script that does what the compose file does, with `docker run` alone."""
    options = ["--rm --init"]
    if needs.size.gpus:
        options.append("--gpus all")
    options.append(f"--shm-size={int(needs.size.memory_gb * SHM_PART)}g")
    options.append(f"--stop-timeout={needs.stop_s}")
    if "output" in needs.local:
        options.append('--user "$(id -u):$(id -g)"')
    options += [f"--env {name}" for name in needs.env]
    options.append(f'--volume "$PWD/{JOB}:{MOUNTED}/{JOB}:ro"')
    options.append(f"--volume retake-cache:{CACHE}")
    options += [f'${{{name}:+--volume "${name}:${name}:ro"}}' for name in _files(needs)]
    for place, writes in mounts(needs):
        options.append(f"--mount {shlex.quote(_bind(place, writes))}")
    command = shlex.join([needs.image, "retake", "run", "--wait", f"{MOUNTED}/{JOB}"])
    lines = " \\\n  ".join(["exec docker run", *options, command])
    return f"#!/bin/bash\n# Runs the job {needs.name} on this machine, as compose.yaml does.\n" + (
        f'cd "$(dirname "$0")" || exit 1\n{lines}\n'
    )


def mounts(needs: Needs) -> list[tuple[str, bool]]:
    """Places of this machine that the job names, each at the same place in the container.

    With whether the job writes there. Of a manifest it is the folder, since its videos are relative
    to it.
    """
    found: dict[str, bool] = {}
    for key, location in needs.local.items():
        place = links(location)[-1]
        place = place.partition("://")[2] or place
        if key == "manifest":
            place = posixpath.dirname(place)
        while key == "manifest" and set(place) & set("*?["):
            place = posixpath.dirname(place)
        found[place] = key == "output" or found.get(place, False)
    return sorted(found.items())


def _bind(place: str, writes: bool) -> str:
    """The option of `docker run --mount`, whose fields are those of a line of CSV."""
    line = io.StringIO()
    fields = ["type=bind", f"source={place}", f"target={place}"]
    csv.writer(line, lineterminator="").writerow(fields if writes else [*fields, "readonly"])
    return line.getvalue()


def _files(needs: Needs) -> list[str]:
    """The variables of the job that name a file of this machine."""
    return [name for name in needs.env if name in FILES]
