"""Where the Parquet files of a manifest are: a file, a folder with its Hive folders, or a glob."""

from __future__ import annotations

import glob
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from fsspec.utils import glob_translate

from jobs.errors import ManifestError
from jobs.manifest.conversion.videos import VIDEO_EXTENSIONS
from pipeline.errors import ErrorCode
from pipeline.locations import before_pattern, is_web, parent
from pipeline.storage import explain, find_all, neighbour, patiently, split

PARQUET = (".parquet", ".pq")
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class FoundFile:
    """A Parquet file, and the columns in the names of its folders (`seed=3/`), as text."""

    uri: str
    partition: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What a location of a manifest comes to.

    Args:
        base: the folder that relative videos are relative to.
    """

    base: str
    files: tuple[FoundFile, ...]


def refusal(uri: str, problems: list[str], done: str = "used") -> ManifestError:
    listed = "".join(f"\n  - {problem}" for problem in problems)
    return ManifestError(f"the manifest {uri} cannot be {done}:{listed}")


def find_files(uri: str, leave_out: str | None) -> Found:
    """The files of a manifest, in order.

    Raises:
        ManifestError: there is none, or the storage cannot be read.
    """
    try:
        return patiently(lambda: _find(uri, leave_out), uri)
    except ManifestError:
        raise
    except Exception as error:  # each storage has its own kinds of failure
        trouble = explain(error, uri)
        missing = trouble.code is ErrorCode.VIDEO_NOT_FOUND
        text = trouble.text.replace("such file", "such file or folder") if missing else trouble.text
        hint = "; expected a Parquet file, a folder of them, or a glob" if missing else ""
        raise refusal(uri, [text + hint]) from error


def _find(uri: str, leave_out: str | None) -> Found:
    fs, path = split(uri)
    if glob.has_magic(path) and not is_web(uri) and not fs.exists(path):
        return _of_pattern(uri, fs, path, leave_out)
    if fs.info(path)["type"] != "directory":
        name = uri if "::" in uri or "?" in uri or is_web(uri) else neighbour(uri, path)
        return Found(parent(uri), (FoundFile(name),))
    return _of_folder(uri, path, sorted(find_all(fs, path)), leave_out)


def _of_pattern(uri: str, fs: Any, path: str, leave_out: str | None) -> Found:
    matched = sorted(fs.glob(path))
    if not matched:
        raise refusal(
            uri, ["no file or folder matches the pattern; expected Parquet files: check the path"]
        )
    found = [file for match in matched for file in sorted(find_all(fs, match))]
    return _of_folder(before_pattern(uri), before_pattern(path), found, leave_out, uri)


def _of_folder(
    folder: str, root: str, found: Sequence[str], leave_out: str | None, uri: str | None = None
) -> Found:
    """The manifest's files among all that were found below `root`, the path of `folder`."""
    if leave_out:
        found = _outside(found, root, split(leave_out)[1])
    inner = [path[len(root) :].strip("/").split("/") for path in found]
    if any("_delta_log" in parts for parts in inner):
        raise refusal(
            uri or folder,
            [
                "it is a Delta table: its folder has files whose rows are deleted; write its "
                "current rows as plain Parquet"
            ],
        )
    files = tuple(
        FoundFile(neighbour(folder, path), _partition(uri or folder, parts[:-1]))
        for path, parts in zip(found, inner, strict=True)
        if path.lower().endswith(PARQUET) and not any(map(_is_hidden, parts))
    )
    if not files:
        raise refusal(uri or folder, [_nothing_there(folder, found)])
    return Found(folder.rstrip("/") or "/", files)


def would_have(uri: str, target: str, leave_out: str | None) -> bool:
    """Whether a manifest, given as a folder or a glob, would have a new file of a place, too.

    Args:
        uri: of the manifest, which is there.
        target: a path or URI.
        leave_out: as `find_files` has it.
    """
    (fs, path), (other, place) = split(uri), split(target)
    if type(fs) is not type(other):
        return False
    if fs.isdir(path):
        root, inside = path.rstrip("/"), place.startswith(f"{path.rstrip('/')}/")
    elif glob.has_magic(path) and not fs.exists(path):
        pattern, root = re.compile(glob_translate(path)), before_pattern(path)
        parts = place.split("/")
        inside = any(pattern.match("/".join(parts[:end])) for end in range(1, len(parts) + 1))
    else:
        return False
    return inside and (not leave_out or bool(_outside([place], root, split(leave_out)[1])))


def _is_hidden(part: str) -> bool:
    """Whether writers mean a name to be passed over, as `_temporary`; a Hive folder is none."""
    return part.startswith(("_", ".")) and "=" not in part


def _partition(uri: str, folders: Sequence[str]) -> dict[str, str | None]:
    values: dict[str, str | None] = {}
    for folder in folders:
        name, equals, value = folder.partition("=")
        if not equals:
            continue
        name = unquote(name)
        if name in values:
            raise refusal(uri, [f"the folders {'/'.join(folders)} give column {name!r} twice"])
        values[name] = None if value == HIVE_NULL else unquote(value)
    return values


def _nothing_there(folder: str, found: Sequence[str]) -> str:
    if not found:
        return "the folder is empty; `retake manifest` makes a manifest of videos or of a table"
    names = ", ".join(posixpath.basename(path) for path in found[:3])
    hint = "; `retake manifest` makes a manifest of videos or of a table"
    if any(path.lower().endswith(VIDEO_EXTENSIONS) for path in found):
        command = f"retake manifest {folder} manifest.parquet --prompt TEXT"
        hint = f"; `{command}` makes a manifest of its videos"
    elif any(path.lower().endswith(TABLES) for path in found):
        hint = "; `retake manifest FILE manifest.parquet` makes a manifest of a table"
    return f"the folder has no *.parquet file; it has {names}{hint}"


def _outside(found: Sequence[str], manifest: str, output: str) -> list[str]:
    """The files that are not in a job's output, where that lies in the manifest's folder."""
    if output == manifest:
        output += "/results"
    inside = f"{output}/".startswith(f"{manifest}/")
    return [path for path in found if not (inside and path.startswith(f"{output}/"))]
