"""Where `retake manifest` reads from: the lines of a file, the videos of a folder.

A `Source` yields the records of CSV, TSV, JSON and JSONL files with the place each came from,
finds the video that a name stands for, and collects what is wrong. `jobs.manifest.converters`
makes entries of the records, `jobs.manifest.grouping` manifest rows of the entries.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cluster.rows import display_id, resolve_uri
from jobs.errors import ConvertError, nearest
from jobs.manifest.schema import EDIT_FIELDS, SCHEMA
from pipeline.storage import join, matching_files, open_file, split

# the first one wins where a folder has a video in two forms
VIDEO_EXTENSIONS: tuple[str, ...] = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg")
VIDEO_EXTENSIONS += (".mpeg", ".ts", ".wmv", ".flv", ".ogv", ".3gp", ".mxf", ".gif")


@dataclass(frozen=True)
class Entry:
    """One edit of one video, as its source has it; nothing is checked yet.

    Args:
        place: where it stands, for messages: "line 12" or "entry 3, edit 2".
        video: its name in the source, of which the default id is made; `uri` is where it lies.
        edit: the values of an `EditSpec`.
        settings: the other values of its `VideoSpec`.
        extra: the passthrough columns.
        published: the ids are a benchmark's names, which get a number where they are taken;
            else they are the user's own, and one that is taken is a problem.
    """

    place: str
    video: Any
    uri: Any
    edit: Mapping[str, Any]
    video_id: Any = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    published: bool = False


class Source:
    """What is converted, where its videos lie, and what is wrong with it.

    Args:
        uri: a file, a glob or a folder, of any fsspec protocol.
        videos: the folder that is searched for the videos; None takes a relative name to lie
            beside the source.

    Raises:
        ConvertError: from here and from every method, what cannot be read at all.
    """

    def __init__(self, uri: str, videos: str | None = None) -> None:
        self.uri = uri
        self.problems: list[str] = []
        self.absent: dict[str, str] = {}  # a name that was not found, and what it is taken to be
        with _storage(uri):
            self.fs, self.path = split(uri)
        with _storage(videos or uri):
            self._videos = split(videos) if videos is not None else None
        folder = (self.fs, posixpath.dirname(self.path))
        self._base = join(*(self._videos or folder))

    def records(self, *needed: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each line or entry that has the needed columns, with its place."""
        with _storage(self.uri):
            files = matching_files(self.uri)
        if not files:
            raise ConvertError(f"no file matches {self.uri}")
        for uri in files:
            prefix = f"{posixpath.basename(uri)}, " if len(files) > 1 else ""
            for place, record in self._parse(uri):
                if problem := _record_problem(record, needed):
                    self.problems.append(f"{prefix}{place}: {problem}")
                else:
                    yield prefix + place, record

    def videos(self, pattern: str) -> dict[str, str]:
        """The URIs of the video files in this folder that match, by their names in the folder."""
        with _storage(self.uri):
            if not self.fs.isdir(self.path):
                raise ConvertError(f"{self.uri} is no folder; expected one with video files in it")
            found = self.fs.glob(f"{glob.escape(self.path)}/{pattern}", detail=True)
            # a link has a type of its own, whatever it leads to
            paths = sorted(
                path
                for path, info in found.items()
                if info["type"] == "file" or (info["type"] != "directory" and self.fs.isfile(path))
            )
        named = {posixpath.relpath(path, self.path): join(self.fs, path) for path in paths}
        return {
            name: uri
            for name, uri in named.items()
            if name.lower().endswith(VIDEO_EXTENSIONS)
            # hidden ones, such as the ._clip.mp4 that macOS leaves
            and not any(part.startswith(".") for part in name.split("/"))
        }

    def published(
        self, place: str, name: Any, edit: dict[str, Any], source_prompt: Any, extra: Any
    ) -> Entry:
        """An entry of a benchmark, whose names serve as ids and may lack a file extension.

        A column that has another meaning in the manifest passes through as `published_<name>`.
        """
        own = {*SCHEMA.names, *EDIT_FIELDS}
        extra = {f"published_{k}" if k in own else k: value for k, value in extra.items()}
        edit = {
            key: value.strip() if isinstance(value, str) else value for key, value in edit.items()
        }
        if edit.get("edit_id"):
            edit["edit_id"] = display_id(edit["edit_id"])
        settings = {"source_prompt": source_prompt}
        if not isinstance(name, str) or not name.strip():
            return Entry(place, name, name, edit, None, settings, extra, published=True)
        stem, extension = posixpath.splitext(name)
        if extension.lower() not in VIDEO_EXTENSIONS:
            stem, extension = name, ""
        uri = self.locate(name, "" if extension else ".mp4")
        return Entry(place, name, uri, edit, display_id(stem), settings, extra, published=True)

    def locate(self, name: Any, extension: str = "") -> Any:
        """Where the video `name` lies; with `extension`, if it is nowhere to be found."""
        if not isinstance(name, str):
            return name
        found = self._index.get(name) or self._index.get(posixpath.splitext(name)[0])
        if found:
            return found
        taken = resolve_uri(name + extension, self._base)
        if self._videos and taken != name:
            self.absent[name] = taken
        return taken

    @cached_property
    def _index(self) -> dict[str, str]:
        """The videos in the folder by path, by file name, and by both without extension."""
        if self._videos is None:
            return {}
        fs, root = self._videos
        with _storage(self._base):
            paths = [path for path in fs.find(root) if path.lower().endswith(VIDEO_EXTENSIONS)]
        rank = {extension: place for place, extension in enumerate(VIDEO_EXTENSIONS)}
        paths.sort(key=lambda path: (rank[posixpath.splitext(path)[1].lower()], path))
        index: dict[str, str] = {}
        for path in paths:
            inside = posixpath.relpath(path, root)
            for name in (inside, posixpath.basename(inside)):
                index.setdefault(name, join(fs, path))
                index.setdefault(posixpath.splitext(name)[0], join(fs, path))
        return index

    def _parse(self, uri: str) -> Iterator[tuple[str, Any]]:
        text = _read(uri)
        start = text.lstrip()[:1]
        if not start:
            raise ConvertError(f"{uri} is empty")
        if start not in "[{":
            yield from _csv_records(text, uri)
            return
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            if start == "[":
                raise ConvertError(f"{uri} is not valid JSON: {error}") from error
            yield from self._json_lines(text)
        else:
            for number, record in enumerate(data if isinstance(data, list) else [data], 1):
                yield f"entry {number}", record

    def _json_lines(self, text: str) -> Iterator[tuple[str, Any]]:
        for number, line in enumerate(text.split("\n"), 1):
            try:
                if line.strip():
                    yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                self.problems.append(f"line {number}: not valid JSON: {error}")


def _read(uri: str) -> str:
    with _storage(uri), open_file(uri) as file:
        content = file.read()
    try:
        return str(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConvertError(f"{uri} is not UTF-8 text: {error}") from error


@contextmanager
def _storage(uri: str) -> Iterator[None]:
    """Each storage has its own kinds of failure; here they all become one."""
    try:
        yield
    except ConvertError:
        raise
    except Exception as error:
        raise ConvertError(f"{uri} cannot be read: {type(error).__name__}: {error}") from error


def _csv_records(text: str, uri: str) -> Iterator[tuple[str, Any]]:
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        for name, count in Counter(reader.fieldnames).items():
            if count > 1:
                raise ConvertError(
                    f"{uri}: {count} columns are called {name!r}; only one of them would be read. "
                    "Rename them; several prompts of a video take a row each"
                )
        for record in reader:
            if any(record.values()):
                cells = {name: cell or None for name, cell in record.items()}
                yield f"line {reader.line_num}", cells
    except csv.Error as error:
        raise ConvertError(f"{uri} is not valid CSV, line {reader.line_num}: {error}") from error


def _record_problem(record: Any, needed: tuple[str, ...]) -> str | None:
    if not isinstance(record, dict):
        return f"{record!r} is no object with columns"
    if None in record:  # where the csv module puts them
        return f"{len(record[None])} more cells than the header has columns"
    missing = [name for name in needed if name not in record]
    if not missing:
        return None
    hints = {name: nearest(name, record, cutoff=0.6) for name in missing}
    listed = [f"{name!r}" + (f" (is it {near!r}?)" if near else "") for name, near in hints.items()]
    return f"there is no {', '.join(listed)}"
