"""Finding video files: in a folder, by a glob, in a list, and by the names that a table has."""

from __future__ import annotations

import glob
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsspec.utils import glob_translate

from jobs.errors import ConvertError
from jobs.manifest.conversion.records import Record, examples, reading
from jobs.manifest.conversion.tables import read_text
from pipeline.locations import expanded, resolve_uri
from pipeline.storage import find_all, join, split

# the first one wins where a folder has a video in two forms
VIDEO_EXTENSIONS: tuple[str, ...] = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg")
VIDEO_EXTENSIONS += (".mpeg", ".ts", ".wmv", ".flv", ".ogv", ".3gp", ".mxf", ".gif")
VIDEO_EXTENSIONS += (".m2ts", ".mts", ".vob", ".asf", ".f4v", ".3g2", ".y4m")
UNFINISHED = (".part", ".crdownload", ".partial", ".download", ".tmp", ".aria2", ".ytdl")


@dataclass
class Sieve:
    """Which files of a folder are videos, and which look like one and are left out.

    A file that two names lead to is taken once, since its edits would be the same.
    """

    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _taken: dict[str, str] = field(default_factory=dict)

    def passes(self, name: str, uri: str, size: int | None) -> bool:
        """Whether the file is a video to take; `name` is the one inside its folder."""
        lowered = name.lower()
        stem, ending = posixpath.splitext(lowered)
        if ending in UNFINISHED and is_video(stem):
            self.left_out["unfinished download"].append(name)
            return False
        if not is_video(lowered):
            return False
        if any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")):
            self.left_out["hidden"].append(name)  # such as the ._clip.mp4 that macOS leaves
        elif size == 0:
            self.left_out["empty"].append(name)
        elif "::" in name:
            self.left_out["named with '::', which has a meaning in URIs"].append(name)
        elif (first := self.taken_as(name, uri)) is not None:
            self.left_out[f"the same file as {first}"].append(name)
        else:
            return True
        return False

    def taken_as(self, name: str, uri: str) -> str | None:
        """The name that the file was taken by before; else it is taken by this one."""
        same = uri if "://" in uri else os.path.realpath(uri)
        first = self._taken.get(same)
        if first is None:
            self._taken[same] = name
        return first

    def warnings(self) -> Iterator[str]:
        for reason, names in self.left_out.items():
            yield f"{len(names)} left out ({reason}): {examples(names)}"


def is_video(name: str) -> bool:
    """Whether a name has the ending of a video; a URL may ask for something behind it."""
    lowered = name.lower()
    return lowered.endswith(VIDEO_EXTENSIONS) or lowered.partition("?")[0].endswith(
        VIDEO_EXTENSIONS
    )


def folder_videos(uri: str, pattern: str, sieve: Sieve) -> Iterator[Record]:
    """The video files in a folder that match `pattern`, in order, by their names in it."""
    with reading(uri):
        fs, root = split(uri)
        if not fs.isdir(root):
            raise ConvertError(f"{uri} is no folder; expected one with video files in it")
        found = sorted(local_or_remote_files(fs, root))
    matches = re.compile(glob_translate(pattern)).fullmatch
    for name, path, size in found:
        full = join(fs, path)
        if matches(name) and sieve.passes(name, full, size):
            yield Record(name, {}, uri, name, full)


def local_or_remote_files(fs: Any, root: str) -> Iterator[tuple[str, str, int | None]]:
    """Name in the folder, path and bytes of each file; links are followed."""
    if join(fs, root) != root:
        for path, info in find_all(fs, root).items():
            yield posixpath.relpath(path, root), path, info.get("size")
        return
    yield from _local_files(root, root, (os.path.realpath(root),))


def _local_files(
    folder: str, root: str, inside: tuple[str, ...]
) -> Iterator[tuple[str, str, int | None]]:
    for entry in os.scandir(folder):
        if entry.is_dir():
            real = os.path.realpath(entry.path)
            if real not in inside:  # a link to a folder around it has no end
                yield from _local_files(entry.path, root, (*inside, real))
        elif entry.is_file():  # of a link, that what it leads to is one
            yield os.path.relpath(entry.path, root), entry.path, entry.stat().st_size


def listed_videos(
    uri: str, problems: list[str], sieve: Sieve, locate: Callable[[str, str], str]
) -> Iterator[Record]:
    """The videos of a list in a text file: a path or URI on each line, relative to its folder.

    Args:
        locate: where a name of the list lies, given the list's folder.
    """
    base = uri.rsplit("/", 1)[0] or "/"
    for number, line in enumerate(read_text(uri).splitlines(), 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        place = f"line {number}"
        full = locate(name, base)
        if "::" not in full and "://" not in full:
            if Path(full).is_dir():
                problems.append(f"{place}: {full} is a folder; expected a video file or a URI")
                continue
            if Path(full).is_file() and not Path(full).stat().st_size:
                sieve.left_out["empty"].append(name)
                continue
        if (first := sieve.taken_as(name, full)) is not None:
            sieve.left_out[f"the same file as {first}"].append(f"{name} ({place})")
        else:
            yield Record(place, {}, base, name, full)


def absolute_video(name: str, base: str) -> str:
    """Where a video lies: `~` and `..` are taken out, and a URI stays what it is.

    Args:
        base: the folder or URI that a relative name is relative to.
    """
    if "::" in name or "://" in name:
        return name
    name = expanded(name)
    if "://" in base and not name.startswith("/"):
        return resolve_uri(name, base)
    full = posixpath.join(base, name)
    plain = posixpath.normpath(full)
    # behind a link to a folder, `..` is not the folder that the link lies in
    moved = ".." in full and Path(full).exists() and not _same(full, plain)
    return os.path.realpath(full) if moved else plain


def _same(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


@dataclass(frozen=True)
class VideoIndex:
    """The videos in a folder by path, by file name, and by both without extension."""

    base: str
    by_name: dict[str, str]
    rivals: dict[str, str]  # another video that the name fits as well

    @classmethod
    def of(cls, uri: str) -> VideoIndex:
        """Of a folder, a path or URI; of several files with one name, the best form wins."""
        with reading(uri):
            fs, root = split(uri)
            if not fs.isdir(root):
                raise ConvertError(
                    f"--videos {uri}: there is no such folder; expected the one that "
                    "the videos' names are looked up in"
                )
            found = [
                (name, path)
                for name, path, size in local_or_remote_files(fs, root)
                if is_video(name)
            ]
        rank = {extension: place for place, extension in enumerate(VIDEO_EXTENSIONS)}
        found.sort(key=lambda item: (rank.get(posixpath.splitext(item[0])[1].lower(), 99), item[1]))
        index: dict[str, str] = {}
        rivals: dict[str, str] = {}
        for inside, path in found:
            if any(part.startswith(".") for part in inside.split("/")):
                continue
            full, names = join(fs, path), (inside, posixpath.basename(inside))
            for name in dict.fromkeys((*names, *(posixpath.splitext(n)[0] for n in names))):
                first = index.setdefault(name, full)
                if posixpath.splitext(first)[0] != posixpath.splitext(full)[0]:
                    rivals.setdefault(name, full)
        return cls(join(fs, root), index, rivals)

    def find(self, name: str) -> tuple[str | None, str | None]:
        """The video of a name, and another one that it fits as well."""
        for key in (name, posixpath.splitext(name)[0]):
            if key in self.by_name:
                return self.by_name[key], self.rivals.get(key)
        return None, None


def matching(uri: str) -> list[str]:
    """The files and folders that a path, URI or glob names, in order.

    A name with a file of its own is no glob. `{000..012}` counts up, as WebDataset writes it.

    Raises:
        ConvertError: there is none.
    """
    if counting := re.search(r"\{(\d+)\.\.(\d+)\}", uri):
        first, last = counting.groups()
        numbers = (f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1))
        return [
            found
            for number in numbers
            for found in matching(uri[: counting.start()] + number + uri[counting.end() :])
        ]
    with reading(uri):
        fs, path = split(uri)
        if not glob.has_magic(path) or fs.exists(path):
            return [uri]
        if join(fs, path) != path:
            paths = fs.glob(path)
        elif "**" in path:
            paths = _below(path)
        else:
            paths = glob.glob(path)  # unlike fsspec's, this one follows links to folders
    if not paths:
        raise ConvertError(
            f"no file matches {uri}; expected a pattern of files that are there: check the folder "
            "and the ending"
        )
    return [join(fs, found) for found in sorted(paths)]


def _below(pattern: str) -> list[str]:
    """The local files that a glob with `**` names; links to folders are followed."""
    base = pattern_base(pattern)
    matches = re.compile(glob_translate(posixpath.relpath(pattern, base))).fullmatch
    return [
        path
        for name, path, _ in _local_files(base, base, (os.path.realpath(base),))
        if matches(name) and not any(part.startswith(".") for part in name.split("/"))
    ]


def matching_videos(uri: str, sieve: Sieve) -> Iterator[Record]:
    """The video files that a path, URI or glob names, by their names in its plain folder."""
    found = matching(uri)
    pattern = split(uri)[1]
    base = posixpath.dirname(pattern) if found == [uri] else pattern_base(pattern)
    for full in found:
        with reading(full):
            fs, path = split(full)
            if fs.isdir(path):
                continue
            if not fs.exists(path):
                raise ConvertError(f"{full}: there is no such file")
            size = fs.size(path)
        name = posixpath.relpath(path, base or ".")
        if sieve.passes(name, full, size):
            yield Record(name, {}, base, name, full)


def pattern_base(pattern: str) -> str:
    """The folder around the first part of a glob that is not plain."""
    plain = []
    for part in pattern.split("/")[:-1]:
        if re.search(r"[*?\[{]", part):
            break
        plain.append(part)
    return "/".join(plain) or ("/" if pattern.startswith("/") else "")
