"""What a submitted job runs first on the head: are the packages there, then `retake` itself.

    python -m cluster.submission.entry run --wait job.yaml

A head without torch would end with a traceback after the first imports. Only the standard library
is imported here, and `packaging`, which Ray brings.

Variables that travel stand in a file of the job's folder that only Ray's user reads. Ray's own way
for them (`env_vars`) writes their values into its logs, and shows them to all who list jobs.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, requires, version

OLDEST = (3, 11)
CANNOT_RUN = 1
VALUES = ".retake-environment.json"
HOOK = "cluster.submission.entry.set_variables"
"""Called by Ray in each process of the job before its work, in the job's folder."""
WAYS_OUT = (
    "Install them on every node with `pip install`, or submit again with --bring-packages, which "
    "has Ray install them for the job, or with --image, where the nodes can start containers"
)


def main(arguments: list[str]) -> None:
    set_variables()
    if problem := missing():
        print(f"error: {problem}", file=sys.stderr, flush=True)
        sys.exit(CANNOT_RUN)
    # The same process, so that a signal of Ray's reaches the run.
    os.execv(sys.executable, [sys.executable, "-m", "jobs.cli", *arguments])


def set_variables() -> None:
    """Set the environment variables that travelled with the job, here and for what starts here."""
    if os.path.isfile(VALUES):
        with open(VALUES, encoding="utf-8") as file:
            os.environ.update(json.load(file))


def missing() -> str:
    """What this Python lacks for Retake, in words; empty where it has all."""
    here = f"the head of the cluster ({platform.node()}, {sys.executable})"
    if sys.version_info < OLDEST:
        found = platform.python_version()
        return f"{here} has Python {found}; expected {'.'.join(map(str, OLDEST))} or newer"
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return (
            f"the `python` of submitted jobs on {here} is not that of Ray: it has none of its "
            "packages. Start Ray there with its Python first in PATH, as in an activated "
            "environment"
        )
    lacks: list[str] = []
    for wanted in map(Requirement, _required()):
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            has = version(wanted.name)
        except PackageNotFoundError:
            lacks.append(f"{wanted.name}{_of(wanted)}")
            continue
        if has and not wanted.specifier.contains(has, prereleases=True):
            lacks.append(f"{wanted.name}{_of(wanted)} (it has {has})")
    return f"{here} lacks {', '.join(lacks)}. {WAYS_OUT}" if lacks else ""


def _required() -> list[str]:
    try:
        return requires("retake") or []
    except PackageNotFoundError:  # an image whose checkout is not installed
        return []


def _of(wanted: object) -> str:
    return str(getattr(wanted, "specifier", ""))


if __name__ == "__main__":
    main(sys.argv[1:])
