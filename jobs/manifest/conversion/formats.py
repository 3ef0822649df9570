"""What `retake manifest` makes of each format that it knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from jobs.errors import ConvertError
from jobs.manifest.conversion.benchmarks import BENCHMARKS
from jobs.manifest.conversion.columns import ColumnOptions, choose_columns
from jobs.manifest.conversion.edits import own_cells, record_entries
from jobs.manifest.conversion.folders import (
    dataset_records,
    file_name_column,
    look_into,
    unnamed_videos,
)
from jobs.manifest.conversion.grouping import Converted, group_entries
from jobs.manifest.conversion.records import Entry, Record
from jobs.manifest.conversion.sources import Source
from jobs.manifest.conversion.tars import tar_records
from jobs.manifest.conversion.videos import (
    VIDEO_EXTENSIONS,
    folder_videos,
    listed_videos,
    matching,
    matching_videos,
)
from pipeline.storage import is_folder

OF_FILES = ("video", "folder", "list")
"""Formats that name videos and nothing else of them; sources of these may be mixed."""

FORMATS = (*OF_FILES, "table", "webdataset", "huggingface", *BENCHMARKS)


@dataclass(frozen=True)
class Options:
    """What the user asks for beside the sources.

    Args:
        prompts: an edit of every video each; a text is one prompt.
        videos: the folder that videos are looked up in by name.
        pattern: which files of a folder.
        skip_bad: leave bad entries out, instead of refusing all.
    """

    prompts: str | Sequence[str] = ()
    columns: ColumnOptions = field(default_factory=ColumnOptions)
    videos: str | None = None
    pattern: str = "**/*"
    skip_bad: bool = False

    def __post_init__(self) -> None:
        given = self.prompts
        prompts = (given,) if isinstance(given, str) else tuple(given)
        object.__setattr__(self, "prompts", prompts)


def convert(uris: Sequence[str], kinds: Sequence[str], options: Options) -> Converted:
    """The rows of a manifest from sources of any format.

    Args:
        uris: absolute paths, URIs or globs.
        kinds: the format of each; all the same, or all of `OF_FILES`.

    Raises:
        ConvertError: what is wrong with the sources, all of it.
    """
    kind = _one_kind(uris, kinds)
    _refuse_unused(uris, kinds, options)
    source = Source(uris, options.videos)
    if kind in BENCHMARKS:
        _refuse_options(kind, source.uri, options)
        return group_entries(source, BENCHMARKS[kind](source), options.skip_bad)
    if kind in OF_FILES:
        return group_entries(source, _of_files(source, kinds, options), options.skip_bad)
    readers: dict[str, Callable[[Source, Options], Iterator[Record]]] = {
        "table": lambda source, _: source.records(),
        "webdataset": _samples,
        "huggingface": _datasets,
    }
    records = list(readers[kind](source, options))
    if kind == "webdataset":  # the option named a file of each sample, and no column
        options = replace(options, columns=replace(options.columns, video=None))
    elif kind == "huggingface" and not options.columns.video:
        column = file_name_column(records)
        options = replace(options, columns=replace(options.columns, video=column))
    try:
        entries = _of_records(source, records, options)
    except ConvertError as error:
        if kind != "huggingface" or options.columns.video:
            raise
        way = "--format folder takes the videos of a folder without its tables"
        raise ConvertError(f"{error}; {way}") from error
    converted = group_entries(source, entries, options.skip_bad)
    if kind == "huggingface":
        named = {row["video"] for row in converted.rows}
        unnamed = [unnamed_videos(look_into(uri), named) for uri in source.uris]
        converted.warnings.extend(warning for warning in unnamed if warning)
    return converted


def _one_kind(uris: Sequence[str], kinds: Sequence[str]) -> str:
    first = kinds[0]
    for uri, kind in zip(uris, kinds, strict=True):
        if kind not in (*OF_FILES, first) or (kind in OF_FILES) != (first in OF_FILES):
            raise ConvertError(
                f"{uris[0]} is read as {first!r} and {uri} as {kind!r}, which do not go into one "
                "manifest. Make a manifest of each in a folder; a job takes the folder"
            )
    return first


def _refuse_unused(uris: Sequence[str], kinds: Sequence[str], options: Options) -> None:
    """Refuse options that would do nothing."""
    if options.videos is not None and {*kinds} <= {"video", "folder", "webdataset"}:
        raise ConvertError(
            f"--videos {options.videos}: {uris[0]} holds its videos itself; leave the option out, "
            "or give a table or a list that names videos"
        )
    if options.pattern != Options.pattern and "folder" not in kinds:
        raise ConvertError(
            f"--pattern {options.pattern!r} goes with a folder of videos; {uris[0]} is read as "
            f"{kinds[0]!r}"
        )


def _refuse_options(kind: str, uri: str, options: Options) -> None:
    if options.prompts:
        raise ConvertError(
            f"--prompt goes with videos or a table without prompts; {uri} has its own prompts, as "
            f"{kind!r} defines them (--format table reads it as a plain table)"
        )
    if options.columns != ColumnOptions():
        raise ConvertError(
            f"{uri} is read as {kind!r}, which defines its columns; "
            "add --format table to name columns"
        )


def _of_files(source: Source, kinds: Sequence[str], options: Options) -> Iterable[Entry]:
    if not options.prompts:
        raise ConvertError(
            f"{source.uri}: there are no prompts; give at least one: "
            '--prompt "a watercolour painting"'
        )
    if options.columns != ColumnOptions():
        raise ConvertError(f"{source.uri} has no columns; --prompt gives every video its prompts")
    records: list[Record] = []
    for uri, kind in zip(source.uris, kinds, strict=True):
        if kind == "list":
            for file in matching(uri):
                records.extend(listed_videos(file, source.problems, source.sieve, source.locate))
        elif kind == "video":
            records.extend(matching_videos(uri, source.sieve))
        else:
            for folder in matching(uri):
                records.extend(folder_videos(folder, options.pattern, source.sieve))
    if not records and not source.problems and "folder" in kinds:
        endings = ", ".join(VIDEO_EXTENSIONS)
        there = "is in it or below" if options.pattern == "**/*" else f"matches {options.pattern!r}"
        reason = f"no video file {there}; expected files of {endings}"
        raise ConvertError("\n".join([f"{source.uri}: {reason}", *source.sieve.warnings()]))
    return _of_records(source, records, options)


def _of_records(source: Source, records: list[Record], options: Options) -> Iterable[Entry]:
    if not records and not source.problems and not source.sieve.left_out:
        raise ConvertError(f"{source.uri} has no rows; expected one for each edit or video")
    if not records:
        return ()
    columns = choose_columns(
        source.uri, records, options.columns, given_prompts=bool(options.prompts)
    )
    if columns.guessed:
        source.notes.append(str(columns))
    if used := [name for name in own_cells(records) if name not in columns.prompts]:
        source.notes.append(f"used as in a manifest: {', '.join(f'`{name}`' for name in used)}")
    source.warnings.extend(columns.warnings)
    return record_entries(source, records, columns, options.prompts)


def _samples(source: Source, options: Options) -> Iterator[Record]:
    for uri in source.uris:
        for found in matching(uri):
            tars = look_into(found).tars if is_folder(found) else (found,)
            for tar in tars:
                yield from tar_records(tar, options.columns.video, source.problems, source.sieve)


def _datasets(source: Source, options: Options) -> Iterator[Record]:
    for uri in source.uris:
        for folder in matching(uri):
            yield from dataset_records(folder, look_into(folder), source)
