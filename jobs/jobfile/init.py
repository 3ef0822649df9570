"""`retake init`: a job file to start from, its texts and defaults taken from the settings."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from jobs.errors import JobError
from jobs.jobfile.problems import text_of
from jobs.spec import JobSpec
from pipeline.locations import expanded
from pipeline.storage import Folder
from pipeline.values import declared, in_words, number

WIDTH = 98
GIVEN = {"manifest": "manifest.parquet", "output": "out", "checkpoint": "embedded"}
"""What a new job has values for."""

FIRST_TO_CHANGE = {
    "video": ("height", "width", "frames", "fps"),
    "inversion": ("steps",),
    "reconstruction": (
        "start",
        "guidance_scale",
        "guidance_steps",
        "negative_prompt",
        "reference",
        "edits_at_once",
    ),
    "trajectory": ("keep",),
    "cluster": ("device", "retries"),
}
"""The settings that people change first, by section; docs/guide.md has them all."""

HEAD = """\
# A job of Retake. Relative paths are relative to this file.
#
#   retake validate {job}
#   retake run {job}
#
# A line with a # right before a name is a setting with its default: take the # away to change it.
# docs/guide.md explains all settings.
"""


def init_job(job: str) -> None:
    """Write a new job file.

    Args:
        job: a path or fsspec URI.

    Raises:
        JobError: there is such a file already, or it cannot be written.
    """
    where = expanded(job)
    if "://" not in where and Path(where).is_dir():
        raise JobError(
            f"job file {job}: is a folder; name a file in it, as {Path(job) / 'job.yaml'}"
        )
    folder, _, name = where.rpartition("/")
    try:
        place = Folder(folder if "://" in where else str(Path(where).absolute().parent))
        if place.exists(name):
            raise JobError(
                f"{job}: exists, and is never replaced; name another file, such as my-job.yaml"
            )
        place.write(name, new_job(job).encode())
    except JobError:
        raise
    except Exception as error:  # each storage has its own kinds of failure
        raise JobError(f"job file {job}: cannot be written: {error}") from error


def new_job(job: str = "job.yaml") -> str:
    """The text of a new job file.

    Args:
        job: its name, for the commands that it shows.
    """
    lines = [HEAD.format(job=job)]
    for name, value in GIVEN.items():
        lines += [f"# {_reason(JobSpec, name, WIDTH)}", f"{name}: {value}"]
    lines.append("")
    lines += _commented(JobSpec, ("precision", "seed"), "")
    for section, names in FIRST_TO_CHANGE.items():
        lines += ["", f"{section}:"]
        lines += _commented(declared(JobSpec)[section][0], names, "  ")
    return "\n".join(lines) + "\n"


def _commented(section: type, names: tuple[str, ...], indent: str) -> Iterator[str]:
    """Settings at their defaults, commented out, each below what it does."""
    before = ""
    for name in names:
        kind, default = declared(section)[name]
        reason = _reason(section, name, WIDTH - len(indent))
        if reason != before:
            yield f"{indent}# {reason}"
        yield f"{indent}#{name}: {_in_yaml(default)} # {in_words(kind)}"
        before = reason


def _reason(section: type, name: str, width: int) -> str:
    """What a setting does, in one line: its first sentence, without asides if it is too long."""
    first = re.split(r"(?<=\w)\. ", text_of(section, name))[0]
    if len(first) > width:
        first = re.sub(r" ?\([^()]*\)", "", first)
    return textwrap.shorten(first, width, placeholder=" ...")


def _in_yaml(value: Any) -> str:
    """A default as YAML has it, on one line."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(number, value))}]"
    if isinstance(value, float):
        return number(value)
    if value == "":
        return '""'
    return yaml.safe_dump(value, default_flow_style=True).splitlines()[0]
