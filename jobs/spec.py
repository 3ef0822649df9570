"""The job file: what a user writes, checked whole before anything starts.

The sections are the settings of `pipeline` and `cluster`; their docstrings say what each value
does. Every default does the right thing: `manifest` and `output` alone are a whole job. Reading
the file, its paths and its problems are in `jobs/jobfile`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from annotated_types import MinLen

from cluster.settings import ClusterSettings
from jobs.errors import JobError
from jobs.jobfile.paths import (
    LOCATIONS,
    SCORE_MODELS,
    absolute,
    folder_of,
    location_of,
    model,
    name_of,
)
from jobs.jobfile.problems import build
from jobs.jobfile.reading import parse_yaml, read_values
from pipeline.settings import EditingSettings, ScoreSettings
from pipeline.storage import Folder, explain
from pipeline.values import shown

__all__ = ["JobSpec", "absolute", "load_job", "model", "parse_job"]

RESOLVED = "job.yaml"
"""The name in an output folder of the job that a run wrote there."""
ABOUT = "about"
"""The key under which a run writes what it ran with into the resolved job; read over."""


@dataclass(frozen=True, kw_only=True)
class JobSpec(EditingSettings):
    """A job file.

    Args:
        manifest: Parquet file, folder of them, or glob; a path or fsspec URI.
        name: of the job, for the title of the gallery; by default that of the job file, or of
            the output folder.
        cluster: where the work runs.
        score: what is measured of each edit.
        accept: rules that an edit must satisfy, such as `background_psnr_db >= 30`.
    """

    manifest: Annotated[str, MinLen(1)]
    name: str = ""
    cluster: ClusterSettings = ClusterSettings()
    score: ScoreSettings = ScoreSettings()
    accept: tuple[str, ...] = ()

    def editing(self) -> EditingSettings:
        """The part that the processes with the model must know."""
        shared = {field.name: getattr(self, field.name) for field in fields(EditingSettings)}
        return EditingSettings(**shared)

    def plain(self) -> dict[str, Any]:
        """The whole job as plain values, as a job file holds them."""
        return _plain(asdict(self))


def load_job(path: str, changes: Sequence[str] = ()) -> JobSpec:
    """Read a job file. Its relative locations are relative to its own folder.

    Args:
        path: a YAML file, a local path or fsspec URI.
        changes: `section.key=value` each, over what the file says; the value is YAML, and a
            location is relative to the working directory.

    Raises:
        JobError: with every problem, its place, and the nearest known name of an unknown one.
    """
    values = read_values(path)
    if isinstance(values.get(ABOUT), dict):
        del values[ABOUT]
    values.setdefault("name", name_of(path))
    return parse_job(values, changes, source=f"job file {path}", folder=folder_of(path))


def read_resolved(output: Folder) -> dict[str, Any]:
    """The values of the job that a run wrote into its output folder; empty where there is none.

    Raises:
        JobError: the file cannot be read, or holds no keys and values.
    """
    try:
        return read_values(output.full_uri(RESOLVED)) if output.exists(RESOLVED) else {}
    except JobError as error:
        raise JobError(f"{output.uri}: cannot be read: {error}") from error
    except Exception as error:  # each storage has its own kinds of failure
        raise JobError(f"{output.uri}: {explain(error, output.uri).text}") from error


def parse_job(
    values: Mapping[str, Any], changes: Sequence[str] = (), *, source: str, folder: str = ""
) -> JobSpec:
    """A job from plain values. Arguments and errors as for `load_job`.

    Args:
        source: what the values are from, for messages.
        folder: what relative locations are relative to, a path or URI; by default the working
            directory.
    """
    values = _located(values, folder)
    changed = set()
    for change in [changes] if isinstance(changes, str) else changes:
        changed.add(_apply(values, change))
    problems: list[str] = []
    job = build(JobSpec, values, problems)
    if job is None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        listed = "\n".join(
            f"  {'--set ' * (problem.partition(': ')[0] in changed)}{problem}"
            for problem in problems
        )
        raise JobError(f"{source}: {count}\n{listed}")
    return job


def _located(values: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The values of a job, its locations made absolute; a wrong value is left to the check."""
    located = dict(values) | _located_in(values, LOCATIONS, "", folder)
    if isinstance(score := values.get("score"), Mapping):
        located["score"] = dict(score) | _located_in(score, SCORE_MODELS, "score.", folder)
    return located


def _located_in(
    values: Mapping[str, Any], names: Sequence[str], section: str, folder: str
) -> dict[str, Any]:
    return {
        name: location_of(f"{section}{name}", value, folder)
        for name in names
        if isinstance(value := values.get(name), str) and value.strip()
    }


def _apply(values: dict[str, Any], change: str) -> str:
    """Change a value; returns its place."""
    place, equals, text = change.partition("=")
    keys = place.strip().split(".")
    if not equals or not all(keys):
        raise JobError(f"--set {change!r}: expected `key=value` or `section.key=value`")
    value = parse_yaml(text, f"--set {change!r}")
    for key in keys[:-1]:
        inner = values.get(key)
        if not isinstance(inner, Mapping | None):
            raise JobError(
                f"--set {change!r}: {key!r} is {shown(inner)} in the job, and no section"
            )
        values[key] = inner = dict(inner or {})
        values = inner
    # Of the command line: relative to the folder that the command runs in.
    if len(keys) == 1:
        values |= _located({keys[0]: value}, "")
    else:
        inside = _located({keys[0]: {keys[1]: value}}, "")[keys[0]] if len(keys) == 2 else {}
        values |= {keys[-1]: value} | inside
    return ".".join(keys)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value
