"""The files of a target, written to a folder: all of them, or none."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.deploy.needs import JOB, AJob, Choices, needs_of, warning_of
from cluster.deploy.targets import NEXT, TARGETS
from jobs.errors import JobError, UserError, WrongOption, nearest
from jobs.jobfile.paths import LOCATIONS
from jobs.spec import JobSpec
from pipeline.locations import expanded
from pipeline.redaction import redacted

ONE_MACHINE = ("docker",)
"""Targets that bring up this machine alone, which sees its own paths."""


@dataclass(frozen=True)
class Written:
    """What was written, and what to say of it.

    Args:
        files: their paths.
        warnings: a line each.
        next: the commands to type.
    """

    files: tuple[str, ...]
    warnings: tuple[str, ...]
    next: tuple[str, ...]


def write_files(
    target: str, spec: JobSpec, choices: Choices, to: str, *, job_file: str, overwrite: bool = False
) -> Written:
    """Write the files of a target.

    Args:
        to: a local folder; made where it is not there.
        job_file: where the job is from, for its name.
        overwrite: whether files that are there may be replaced.

    Raises:
        WrongOption: there is no such target, or an option has a wrong value.
        JobError: the job has a secret in it.
        UserError: a file is there, or cannot be written.
        CannotRun: no nodes fit the job's groups.
    """
    if target not in TARGETS:
        near = nearest(target, TARGETS, cutoff=0.5)
        meant = f"; did you mean {near}?" if near else ""
        raise WrongOption(f"TARGET {target!r}: expected one of {', '.join(TARGETS)}{meant}")
    if "://" in to:
        raise WrongOption(f"--to {to!r}: expected a local folder; the files are used from here")
    for name in choices.env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise WrongOption(
                f"--env {name.partition('=')[0]!r}: write the name of a variable, alone; what it "
                "holds is taken from your environment when the files are used"
            )
    needs = needs_of(_job_of(spec, job_file), choices)
    files = {JOB: needs.job_text, **TARGETS[target](needs)}
    folder = Path(expanded(to)).absolute()
    _write(folder, files, overwrite=overwrite)
    paths = tuple(str(folder / name) for name in files)
    warnings = () if target in ONE_MACHINE else (warning_of(needs),)
    enter = f"cd {shlex.quote(str(folder))}"
    return Written(paths, tuple(filter(None, warnings)), (enter, *NEXT[target](needs)))


def _job_of(spec: JobSpec, job_file: str) -> AJob:
    """A job for machines elsewhere: its locations absolute, and the changes of `--set` in it."""
    locations = {key: str(getattr(spec, key)) for key in LOCATIONS}
    for key, place in (*locations.items(), ("name", spec.name)):
        if redacted(place) != place:
            raise JobError(
                f"{key} {redacted(place)} holds a secret, which would stand in the files; pass it "
                "in the environment instead (--env NAME names more variables)"
            )
    stem = Path(job_file.partition("::")[0].partition("?")[0]).stem
    name = spec.name or (stem if stem != "job" else "") or Path(spec.output.rstrip("/")).name
    return AJob(name, job_text(spec), spec.cluster, locations)


def job_text(spec: JobSpec) -> str:
    """A job as YAML, without what is as it is by default."""
    defaults = JobSpec(manifest="-", output="-").plain()
    values = _without(spec.plain(), defaults)
    first: dict[str, Any] = {
        key: values.pop(key) for key in ("manifest", "output", "checkpoint") if key in values
    }
    head = (
        "# The job as `retake deploy` found it: its locations absolute, changes of --set in it.\n"
    )
    return head + yaml.safe_dump({**first, **values}, sort_keys=False, allow_unicode=True)


def _without(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(defaults.get(key), dict):
            value = _without(value, defaults[key])
            if not value:
                continue
        elif value == defaults.get(key):
            continue
        kept[key] = value
    return kept


def _write(folder: Path, files: dict[str, str], *, overwrite: bool) -> None:
    there = [name for name in files if os.path.lexists(folder / name)]
    if there and not overwrite:
        raise UserError(
            f"{folder}: {', '.join(there)} exist there; name another folder, or replace them with "
            "--overwrite"
        )
    try:
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            if text.startswith("#!"):
                path.chmod(0o755)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error
