"""Where the locations of a job lead: one rule for job files, `--set` and the commands' arguments.

A relative location in a job file is relative to the file's folder, wherever the command runs; one
on the command line is relative to the folder that the command runs in.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from jobs.errors import JobError
from pipeline import locations
from pipeline.locations import expanded, resolve_uri
from pipeline.redaction import HIDDEN, has_hidden

LOCATIONS = ("manifest", "output", "checkpoint")
"""The keys of a job that hold a location."""
SCORE_MODELS = ("clip", "dino", "judge")
"""The keys of the section `score` that hold a model: a folder, or a name; or a judge's URL."""
EMBEDDED = "embedded"

WEB = ("http://", "https://")

_URI = re.compile(r"(.*?://)((?:(?!::).)*)(.*)", re.DOTALL)
"""`zip://` + `jobs/job.yaml` + `::s3://bucket/archive.zip`; the last one is mostly empty."""


def absolute(location: str, folder: str = "") -> str:
    """A location that means the same to every process.

    Args:
        folder: what a relative path is relative to, a path or URI; by default the folder that the
            command runs in. URIs and absolute paths stay as they are, and `~` is the home folder.

    Raises:
        JobError: nothing opens it, as `s3:/bucket` with one slash.
    """
    if why := locations.problem(location):
        raise JobError(f"{location!r} {why}")
    _check_whole(location)
    return locations.absolute(resolve_uri(expanded(location), expanded(folder) or None))


def model(location: str, folder: str = "") -> str:
    """As `absolute`, but `owner/name` stays a name on the Hub where there is no such folder."""
    named = location.count("/") == 1 and not location.startswith((".", "/", "~"))
    _check_whole(location)
    there = "://" not in folder and Path(expanded(folder), location).exists()
    return location if named and not there else absolute(location, folder)


def _check_whole(location: str) -> None:
    if has_hidden(location):
        raise JobError(
            f"{location!r} has {HIDDEN} where a secret was: a run leaves secrets out of what it "
            "writes; give the whole location again"
        )


def location_of(key: str, value: str, folder: str = "") -> str:
    """The location that a job's key holds, made absolute."""
    try:
        if key.startswith("score."):
            return value if value.lower().startswith(WEB) else model(value, folder)
        if key != "checkpoint":
            return absolute(value, folder)
        return value if value == EMBEDDED else model(value, folder)
    except JobError as error:
        raise JobError(f"{key} {error}") from None


def folder_of(file: str) -> str:
    """The folder of a job file, a path or URI; of a pipe, the one that the command runs in.

    A local one without links and `..`, as the working directory is: the paths of videos are in the
    fingerprints of edits, so `retake run ../job.yaml` must come to the same as `job.yaml` there.
    """
    if "://" not in file:
        local = Path(expanded(file))
        return str(local.absolute().parent.resolve()) if local.is_file() else ""
    head, path, rest = _URI.fullmatch(file).groups()  # type: ignore[union-attr]
    if head.startswith(("http://", "https://")):
        path = path.partition("?")[0]  # the query is for that one file
    return f"{head}{posixpath.dirname(path)}{rest}"


def name_of(file: str) -> str:
    """The name of a job file without folder and ending; none for `job.yaml`, which names no job.

    Nor has a pipe one.
    """
    if "://" not in file and not Path(expanded(file)).is_file():
        return ""
    stem = posixpath.splitext(posixpath.basename(file.partition("::")[0].partition("?")[0]))[0]
    return "" if stem == "job" else stem
