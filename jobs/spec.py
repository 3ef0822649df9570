"""The job file: what a user writes, checked whole before anything starts.

The sections are the settings of `pipeline` and `cluster`; their docstrings say what each value
does. Every default does the right thing: `manifest` and `output` alone are a whole job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from annotated_types import MinLen
from pydantic import ConfigDict, TypeAdapter, ValidationError

from cluster.settings import ClusterSettings
from jobs.errors import JobError, nearest
from pipeline.settings import EditingSettings

UNKNOWN_KEY = "unexpected_keyword_argument"


@dataclass(frozen=True, kw_only=True)
class JobSpec(EditingSettings):
    """A job file.

    Args:
        manifest: Parquet file or folder, a path or fsspec URI.
        cluster: where the work runs.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    manifest: Annotated[str, MinLen(1)]
    cluster: ClusterSettings = ClusterSettings()

    def editing(self) -> EditingSettings:
        """The part that the processes with the model must know, its locations resolved."""
        shared = {field.name: getattr(self, field.name) for field in fields(EditingSettings)}
        if self.checkpoint != "embedded":
            shared["checkpoint"] = model(self.checkpoint)
        shared["output"] = absolute(self.output)
        return EditingSettings(**shared)


def load_job(path: str, changes: Sequence[str] = ()) -> JobSpec:
    """Read a job file.

    Args:
        path: a local YAML file.
        changes: `section.key=value` each, over what the file says; the value is YAML.

    Raises:
        JobError: with every problem, its place, and the nearest known name of an unknown one.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise JobError(f"job file {path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise JobError(f"job file {path}: is not text: {error}") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise JobError(f"job file {path}: is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        found = "empty" if values is None else f"a {type(values).__name__}"
        raise JobError(
            f"job file {path}: is {found}; expected keys and values, at least `manifest` and "
            "`output`"
        )
    return parse_job(values, changes, source=f"job file {path}")


def parse_job(values: Mapping[str, Any], changes: Sequence[str] = (), *, source: str) -> JobSpec:
    """A job from plain values. Arguments and errors as for `load_job`."""
    values = dict(values)
    for change in changes:
        _apply(values, change)
    try:
        return TypeAdapter(JobSpec).validate_python(values)
    except ValidationError as error:
        problems = list(dict.fromkeys(_describe(problem) for problem in _merged(error)))
        listed = "\n".join(f"  {problem}" for problem in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise JobError(f"{source}: {count}\n{listed}") from None


def absolute(location: str) -> str:
    """A local path made absolute, so that every process means the same; URIs stay as they are."""
    return location if "://" in location else str(Path(location).expanduser().absolute())


def model(location: str) -> str:
    """As `absolute`, but `owner/name` stays a name on the Hub where there is no such folder."""
    named = location.count("/") == 1 and not location.startswith((".", "/", "~"))
    return location if named and not Path(location).exists() else absolute(location)


def _apply(values: dict[str, Any], change: str) -> None:
    place, equals, text = change.partition("=")
    keys = place.strip().split(".")
    if not equals or not all(keys):
        raise JobError(f"--set {change!r}: expected `key=value` or `section.key=value`")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise JobError(f"--set {change!r}: the value is not valid YAML: {error}") from error
    for key in keys[:-1]:
        inner = values.get(key)
        values[key] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        values = inner
    values[keys[-1]] = value


def _merged(error: ValidationError) -> list[dict[str, Any]]:
    """Pydantic's problems, those of one value's several accepted kinds made one."""
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for problem in error.errors(include_url=False):
        place = tuple(problem["loc"])
        if problem["type"] != UNKNOWN_KEY:
            place = tuple(part for part in place if _is_place(part))
        known = merged.setdefault(place, {**problem, "loc": place, "expected": []})
        known["expected"].append(problem["msg"])
    return list(merged.values())


def _is_place(part: Any) -> bool:
    """Whether a part of a location is a key or an index, not pydantic's name of a kind of value."""
    return isinstance(part, int) or not any(mark in str(part) for mark in "[-'")


def _describe(problem: Mapping[str, Any]) -> str:
    *sections, last = problem["loc"] or ("",)
    place = ".".join(str(part) for part in problem["loc"]) or "the job"
    if problem["type"] == UNKNOWN_KEY:
        known = _known_names(sections)
        close = nearest(str(last), known, cutoff=0.7)
        hint = f"did you mean {close!r}?" if close else f"known here: {', '.join(sorted(known))}"
        return f"{place}: there is no such key; {hint}"
    if problem["type"] == "missing":
        return f"{place}: is missing"
    if problem["type"] == "value_error":
        return f"{place}: {problem['ctx']['error']}"
    expected = " or ".join(dict.fromkeys(_lower(text) for text in problem["expected"]))
    return f"{place}: is {problem['input']!r}; {expected}"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _known_names(sections: Sequence[Any]) -> list[str]:
    kind: Any = JobSpec
    for section in sections:
        names = _fields(kind)
        kind = names.get(str(section))
    return list(_fields(kind))


def _fields(kind: Any) -> dict[str, Any]:
    """The names of a section, and of each that is a section of its own its class."""
    if not is_dataclass(kind):
        return {}
    defaults = {f.name: f.default for f in fields(kind)}
    return {name: type(value) if is_dataclass(value) else None for name, value in defaults.items()}
