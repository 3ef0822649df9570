"""What a job brings along in Ray's runtime environment: packages, variables, an image."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cluster.job import CannotRun
from cluster.submission.package import requirements

STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""How long Ray waits after SIGTERM before it kills a job; 3 s by itself."""
STOP_MORE_S = 20.0
"""What the end of a run may take beside `cluster.stop_grace_s`."""
SETUP_S = 1800
"""What installing packages on a node may take; Ray's own bound is 600 s."""
ALSO = ("s3fs", "gcsfs")
"""Packages that no one requires, and that open storage where they are installed."""
OURS = re.compile(r"RAY_.*|PATH|PYTHONPATH|PYTHONHOME|LD_.*|VIRTUAL_ENV|HOME", re.IGNORECASE)


def variables(names: Iterable[str]) -> dict[str, str]:
    """The values that the named environment variables have here.

    Raises:
        CannotRun: one is not set, is no name, or is one that Ray or Python needs as it is there.
    """
    found = {}
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise CannotRun(
                f"--env takes the name of a variable alone, as {name.partition('=')[0]}. Its value "
                "is taken from the environment here, so that it stands in no command line"
            )
        if OURS.fullmatch(name):
            raise CannotRun(
                f"--env {name}: Ray or Python sets it on each node; set it there where it must be "
                "another"
            )
        if name not in os.environ:
            raise CannotRun(
                f"--env {name}: is not set here; set it (`export {name}=...`), or leave it out"
            )
        found[name] = os.environ[name]
    return found


def runtime_environment(
    stop_grace_s: float, *, bring_packages: bool = False, image: str | None = None
) -> dict[str, Any]:
    """Ray's `runtime_env` of a job, without what travels by its hash, and without variables.

    Args:
        stop_grace_s: that the run has to end after a signal.
        bring_packages: install what this package requires, in the versions of this machine.
        image: of a container that holds everything; Ray starts each process of the job in it.
    """
    stop_s = math.ceil(stop_grace_s + STOP_MORE_S)
    made: dict[str, Any] = {"env_vars": {STOP_WAIT: str(stop_s)}}
    if image:
        return {**made, "image_uri": image}
    if bring_packages:
        made["pip"] = pinned()
        made["config"] = {"setup_timeout_seconds": SETUP_S}
    return made


def pinned() -> list[str]:
    """What this package requires, in the exact versions of this machine, for pip.

    Ray is left out: a job cannot bring another one than its cluster's. What a build adds to its
    version, as `+cpu`, is too: the index that packages come from by default does not have it.
    """
    from packaging.requirements import Requirement

    found = {}
    for wanted in map(Requirement, [*requirements(), *ALSO]):
        if wanted.name == "ray" or (wanted.marker and "extra" in str(wanted.marker)):
            continue
        try:
            has = version(wanted.name).partition("+")[0]
        except PackageNotFoundError:  # for another system than this one
            if wanted.name not in ALSO:
                found[wanted.name] = str(wanted)
            continue
        marker = f"; {wanted.marker}" if wanted.marker else ""
        found[wanted.name] = f"{wanted.name}=={has}{marker}"
    return [found[name] for name in sorted(found)]
