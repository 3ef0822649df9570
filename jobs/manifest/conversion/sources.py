"""What is converted, what was found wrong with it, and where the videos lie that it names."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

from cluster.rows import display_id
from jobs.errors import nearest
from jobs.manifest.conversion.records import Entry, Record
from jobs.manifest.conversion.tables import read_table
from jobs.manifest.conversion.videos import (
    VIDEO_EXTENSIONS,
    Sieve,
    VideoIndex,
    absolute_video,
    matching,
)
from jobs.manifest.schema import EDIT_FIELDS, SCHEMA
from pipeline.storage import join, split


class Source:
    """One or several files, globs or folders of the same kind.

    Args:
        uris: of any fsspec protocol.
        videos: the folder that is searched for the videos; None takes a relative name to lie
            beside the file that names it.

    Raises:
        ConvertError: from here and from every method, what cannot be read at all.
    """

    def __init__(self, uris: str | Sequence[str], videos: str | None = None) -> None:
        self.uris = (uris,) if isinstance(uris, str) else tuple(uris)
        more = len(self.uris) - 1
        self.uri = self.uris[0] + (f" (and {more} more)" if more else "")
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.files: list[str] = []  # that were read
        self.sieve = Sieve()
        self.absent: dict[str, str] = {}  # a name that was not found, and what it is taken to be
        self.rivals: dict[str, str] = {}  # names that fit several videos
        self._index = VideoIndex.of(videos) if videos is not None else None

    def records(self, *needed: str) -> Iterator[Record]:
        """Each line or entry that has the needed columns."""
        files = [file for uri in self.uris for file in matching(uri)]
        for uri in files:
            yield from self.records_of(uri, posixpath.basename(uri) * (len(files) > 1), *needed)

    def records_of(self, uri: str, name: str, *needed: str) -> Iterator[Record]:
        """The same of one file; its places begin with `name`."""
        prefix = f"{name}, " if name else ""
        base = self._index.base if self._index else join(*split(uri)).rpartition("/")[0]
        problems: list[str] = []
        self.files.append(uri)
        for place, values in read_table(uri, problems):
            if problem := _problem(values, needed):
                problems.append(f"{place}: {problem}")
            else:
                yield Record(prefix + place, values, base)
        self.problems.extend(prefix + problem for problem in problems)

    def locate(self, name: Any, base: str, extension: str = "") -> Any:
        """Where the video `name` lies; with `extension`, if it is nowhere to be found."""
        if not isinstance(name, str) or not name.strip():
            return name
        if self._index:
            found, rival = self._index.find(name)
            if rival:
                self.rivals[name] = f"{found} is taken, {rival} is not"
            if found:
                return found
        taken = absolute_video(name + extension, base)
        if self._index and taken != name:
            self.absent[name] = taken
        return taken

    def published(
        self,
        record: Record,
        place: str,
        name: Any,
        edit: dict[str, Any],
        source_prompt: Any,
        extra: dict[str, Any],
    ) -> Entry:
        """An entry of a benchmark, whose names serve as ids and may lack a file extension.

        A column that has another meaning in the manifest passes through as `published_<name>`.
        """
        own = {*SCHEMA.names, *EDIT_FIELDS}
        if isinstance(extra.get("instruction"), str):
            edit = {"instruction": extra["instruction"], **edit}
            extra = {key: value for key, value in extra.items() if key != "instruction"}
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
        uri = self.locate(name, record.base, "" if extension else ".mp4")
        return Entry(place, name, uri, edit, display_id(stem), settings, extra, published=True)


def _problem(record: Any, needed: tuple[str, ...]) -> str | None:
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
