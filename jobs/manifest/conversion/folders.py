"""What a folder holds: videos, tar files, tables, or a dataset as Hugging Face lays it out.

A Hugging Face `VideoFolder` has `metadata.csv`, `.jsonl` or `.parquet` beside its videos, with a
column `file_name` that is relative to it. Its splits are folders or parts of file names (`train`,
`validation`, `test`), and become a passthrough column.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from jobs.manifest.conversion.records import Record, examples, reading
from jobs.manifest.conversion.sources import Source
from jobs.manifest.conversion.tars import TAR_EXTENSIONS
from jobs.manifest.conversion.videos import is_video, local_or_remote_files
from pipeline.storage import join, split

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TABLES = (
    (".parquet", ".arrow"),
    (".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz"),
    (".json", ".json.gz"),
)
"""The endings of tables; those of the first rank that a folder has are its rows."""
ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What the library datasets writes about a dataset, and no part of its rows."""

_SPLIT = re.compile(
    r"(?:^|[/._ -])(train|training|test|testing|eval|evaluation|dev|val|valid|validation)"
    r"(?=$|[/._ -])"
)
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("dev", "val", "valid", "validation"), "validation"),
}


@dataclass(frozen=True)
class Contents:
    """What a folder holds, as URIs; hidden files and folders do not count.

    Args:
        other_tables: those that are taken for something else than rows.
    """

    videos: tuple[str, ...]
    tars: tuple[str, ...]
    tables: tuple[str, ...]
    metadata: tuple[str, ...]
    other_tables: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The format that the folder is in, one of `FORMATS`."""
        if self.metadata:
            return "huggingface"
        if self.videos:
            return "folder"
        if self.tars:
            return "webdataset"
        return "huggingface" if self.tables else "folder"


def look_into(uri: str) -> Contents:
    """List a folder and all below it."""
    with reading(uri):
        fs, root = split(uri)
        names = sorted(
            (name, join(fs, path))
            for name, path, _ in local_or_remote_files(fs, root)
            if not any(part.startswith(".") for part in name.split("/"))
        )
    lowered = [(name.lower(), full) for name, full in names]
    rows = [(name, full) for name, full in lowered if posixpath.basename(name) not in ABOUT]
    ranks = [tuple(full for name, full in rows if name.endswith(rank)) for rank in TABLES]
    first, *others = [rank for rank in ranks if rank] or [()]
    return Contents(
        tuple(full for name, full in lowered if is_video(name)),
        tuple(full for name, full in lowered if name.endswith((*TAR_EXTENSIONS, ".tgz"))),
        first,
        tuple(full for name, full in lowered if posixpath.basename(name) in METADATA),
        tuple(full for rank in others for full in rank),
    )


def dataset_records(uri: str, contents: Contents, source: Source) -> Iterator[Record]:
    """The rows of a Hugging Face dataset, each with its split."""
    if contents.other_tables and not contents.metadata:
        names = [posixpath.basename(table) for table in contents.other_tables]
        source.warnings.append(f"{len(names)} not read beside the other tables: {examples(names)}")
    for table in contents.metadata or contents.tables:
        inside = posixpath.relpath(split(table)[1], split(uri)[1])
        found = _SPLIT.findall(inside.lower())
        for record in source.records_of(table, inside):
            values = dict(record.values)
            if found and values.get("split") is None:
                values["split"] = _SPLITS[found[-1]]
            yield replace(record, values=values)


def file_name_column(records: list[Record]) -> str | None:
    """The column of a `VideoFolder` that names the video; None if it is another kind of table."""
    names = dict.fromkeys(name for record in records for name in record.values)
    if "file_name" in names:
        return "file_name"
    named = [name for name in names if name.endswith("_file_name")]
    return named[0] if len(named) == 1 else None


def unnamed_videos(contents: Contents, named: set[Any]) -> str | None:
    """A warning where a dataset's folder has videos that its metadata does not name."""
    left = [posixpath.basename(video) for video in contents.videos if video not in named]
    if not left or not contents.metadata:
        return None
    metadata = posixpath.basename(contents.metadata[0])
    return f"{len(left)} left out (not named in {metadata}): {examples(left)}"
