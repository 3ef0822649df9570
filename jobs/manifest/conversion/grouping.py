"""From the entries of a source to the rows of a manifest.

Every entry is checked with the rules of a running job (`cluster.rows`), so each problem is reported
with its line or entry, and all of them at once. Entries that share a video and its settings become
one row.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cluster.rows import check_row, default_video_id
from jobs.errors import ConvertError, counted, nearest
from jobs.manifest.conversion.records import Entry, examples
from jobs.manifest.conversion.sources import Source
from jobs.manifest.schema import EDIT_FIELDS, SCHEMA
from pipeline.errors import RowError
from pipeline.records import EditSpec, VideoSpec

MAX_LISTED_PROBLEMS = 20


@dataclass(frozen=True)
class Converted:
    """Rows for `write_manifest`, and what the user should look at.

    Args:
        rows: their videos are absolute paths, or URIs.
        notes: what was decided for the user.
        files: those that were read.
        absent: names that were not found in the folder of videos, and what they are taken to be.
    """

    rows: list[dict[str, Any]]
    warnings: list[str]
    notes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)


def group_entries(source: Source, entries: Iterable[Entry], skip_bad: bool) -> Converted:
    """Check every entry and join those of one video with the same settings to a row.

    Raises:
        ConvertError: an entry is wrong, and `skip_bad` is not set, or none is right.
    """
    groups: dict[Hashable, _Group] = {}
    video_ids: dict[str, str] = {}
    twice: list[str] = []
    for entry in entries:
        try:
            video = _check(entry)
            group = _find_group(groups, video_ids, entry, video)
            if group.has(entry, video.edits[0]):
                twice.append(entry.place)
            else:
                group.add(entry, video.edits[0])
        except (RowError, ConvertError) as error:
            source.problems.append(f"{entry.place}: {error}")
    if source.problems and not (skip_bad and groups):
        raise _refusal(source, some_good=bool(groups))
    left_out = list(source.sieve.warnings())
    if not groups:
        raise ConvertError("\n".join([f"{source.uri} has no videos in it", *left_out]))
    names = list(dict.fromkeys(n for g in groups.values() for extra in g.extras for n in extra))
    rows = [group.row() for group in groups.values()]
    for name in names:
        _add_column(name, rows, [group.extras for group in groups.values()])
    warnings = [*source.problems, *source.warnings, *left_out, *_doubts(source, names, twice)]
    return Converted(rows, warnings, source.notes, source.files, source.absent)


@dataclass(frozen=True)
class _Group:
    """A row in the making: its video, without edits, and of each edit the other columns."""

    video: VideoSpec
    edits: dict[str, EditSpec] = field(default_factory=dict)  # by id
    places: dict[str, str] = field(default_factory=dict)  # by id
    extras: list[Mapping[str, Any]] = field(default_factory=list)
    given: dict[str, int] = field(default_factory=dict)  # by id, the number of a given prompt

    def has(self, entry: Entry, edit: EditSpec) -> bool:
        """Whether the edit is one of those given for all videos, and the video came before."""
        before = self.given.get(str(edit.edit_id))
        return before is not None and before == entry.given

    def add(self, entry: Entry, edit: EditSpec) -> None:
        edit_id = str(edit.edit_id)
        if edit_id in self.edits:
            if not entry.published or entry.edit.get("edit_id") is None:
                raise ConvertError(
                    f"the edit {edit_id!r} of this video is already at {self.places[edit_id]}"
                )
            edit_id = _numbered(edit_id, self.edits)
        self.places[edit_id] = entry.place
        if entry.given is not None:
            self.given[edit_id] = entry.given
        self.extras.append(entry.extra)
        negative_prompt = edit.negative_prompt or None
        self.edits[edit_id] = replace(edit, edit_id=edit_id, negative_prompt=negative_prompt)

    def row(self) -> dict[str, Any]:
        return asdict(replace(self.video, edits=tuple(self.edits.values())))


def _check(entry: Entry) -> VideoSpec:
    """The video of an entry, with its one edit."""
    columns = {"video": entry.uri, "video_id": entry.video_id, "edits": [entry.edit]}
    checked = check_row({**entry.settings, **columns})
    for failure in checked.failures:
        raise RowError(failure.code, failure.message)
    return checked.video


def _find_group(
    groups: dict[Hashable, _Group], video_ids: dict[str, str], entry: Entry, video: VideoSpec
) -> _Group:
    key = replace(video, video_id=entry.video_id, edits=())
    if key not in groups:
        video_id = entry.video_id or default_video_id(entry.video)
        if video_id in video_ids:
            if entry.video_id is not None and not entry.published:
                raise ConvertError(
                    f"video_id {video_id!r} is already that of {video_ids[video_id]}, "
                    "with another video or other settings"
                )
            video_id = _numbered(video_id, video_ids)
        video_ids[video_id] = entry.place
        groups[key] = _Group(replace(key, video_id=video_id))
    return groups[key]


def _add_column(
    name: str, rows: list[dict[str, Any]], extras: list[list[Mapping[str, Any]]]
) -> None:
    """A passthrough column: one value for a video, or a list if any video's edits differ."""
    values = [[extra.get(name) for extra in of_edits] for of_edits in extras]
    uniform = all(value == of_edits[0] for of_edits in values for value in of_edits)
    for row, of_edits in zip(rows, values, strict=True):
        row[name] = of_edits[0] if uniform else of_edits


def _numbered(name: str, taken: Container[str]) -> str:
    return next(n for n in (f"{name}-{i}" for i in itertools.count(2)) if n not in taken)


def _doubts(source: Source, extra: list[str], twice: list[str]) -> Iterator[str]:
    for name in extra:
        if near := nearest(name, {*SCHEMA.names, *EDIT_FIELDS}):
            yield f"column {name!r} passes through as it is; {near!r} is a known name"
    if source.rivals:
        name, choice = next(iter(source.rivals.items()))
        number = counted(len(source.rivals), "name")
        yield f"{number} in more than one folder, such as {name!r}: {choice}; add the folder to it"
    if twice:
        yield f"{counted(len(twice), 'repeated edit')} left out: {examples(twice)}"


def _refusal(source: Source, some_good: bool) -> ConvertError:
    listed = source.problems[:MAX_LISTED_PROBLEMS]
    rest = len(source.problems) - len(listed)
    lines = [*listed, f"and {rest} more"] if rest else listed
    way = "\n--skip-bad leaves these out and takes the rest" if some_good else ""
    listing = "".join(f"\n  - {line}" for line in lines)
    return ConvertError(f"{source.uri} cannot be converted:{listing}{way}")
