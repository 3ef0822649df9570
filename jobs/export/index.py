"""What an export says of itself, in `.export/`: what was asked for, and a commit for each shard.

    .export/export.json             the settings, written first
    .export/shards/<shard>.json     the commit of a shard, written after its files
    .export/end.json                the files that are of all shards, written last

A shard counts when its commit is there; a commit appears whole. Loaders of datasets leave out
folders whose names begin with a dot.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any

from jobs.errors import JobError
from jobs.export.formats import Settings, Shard
from jobs.export.target import Stored
from pipeline.storage import Folder, from_json

FOLDER = ".export"
ABOUT = f"{FOLDER}/export.json"
SHARDS = f"{FOLDER}/shards"
END = f"{FOLDER}/end.json"
CHECKSUMS = "checksums.sha256"
VERSION = 1
READERS = 16

IDENTITY = ("fingerprint", "size_bytes", "candidate", "round")
"""Columns of the results that are others where an edit was made again."""


@dataclass(frozen=True)
class Commit:
    """A shard that is whole.

    Args:
        name: of the shard, as `train-000000`.
        split, number: of it.
        files: its files.
        pairs: of each the key, the `video_id`, the `edit_id`, the columns of `IDENTITY`, and
            `Pair.source_sha`.
    """

    name: str
    split: str
    number: int
    files: tuple[Stored, ...]
    pairs: tuple[tuple[Any, ...], ...]

    @classmethod
    def parse(cls, data: bytes) -> Commit:
        values = from_json(data)
        values["files"] = tuple(Stored(*one) for one in values["files"])
        values["pairs"] = tuple(map(tuple, values["pairs"]))
        return cls(**values)

    def as_json(self) -> bytes:
        files = [[one.name, one.sha256, one.size] for one in self.files]
        return json.dumps(asdict(self) | {"files": files}, separators=(",", ":")).encode()


def commit_of(shard: Shard, files: Sequence[Stored], pairs: Iterable[tuple[Any, ...]]) -> Commit:
    stored = tuple(sorted(files, key=lambda one: one.name))
    return Commit(shard.name, shard.split, shard.number, stored, tuple(pairs))


def write_commit(to: Folder, commit: Commit) -> None:
    to.write(f"{SHARDS}/{commit.name}.json", commit.as_json())


def read_commits(to: Folder) -> list[Commit]:
    """The shards that are whole, in order.

    Raises:
        JobError: a commit is damaged.
        StorageFailed: storage does not give one.
    """
    names = [name for name in to.list(SHARDS) if name.endswith(".json")]
    with ThreadPoolExecutor(READERS, "commits") as pool:
        return list(pool.map(lambda name: _read(to, name, Commit.parse), names))


def read_settings(to: Folder) -> Settings | None:
    """What an earlier run of the command was asked for; None where there was none.

    Raises:
        JobError: the file is damaged, or of a version that this one does not know.
    """
    if not to.exists(ABOUT):
        return None
    values = _read(to, ABOUT, from_json)
    known = {field.name for field in fields(Settings)}
    if values.get("version") != VERSION or not known <= set(values):
        raise JobError(
            f"{to.uri}/{ABOUT}: is of another version of Retake; expected version {VERSION}: give "
            "a new folder"
        )
    return Settings(**{name: values[name] for name in known})


def write_settings(to: Folder, settings: Settings) -> None:
    values = {"version": VERSION, **asdict(settings)}
    to.write(ABOUT, json.dumps(values, indent=1).encode())


def read_end(to: Folder) -> dict[str, Stored]:
    """The files that were written of all shards, by name; none where no run came to its end."""
    if not to.exists(END):
        return {}
    files = _read(to, END, lambda data: [Stored(*one) for one in from_json(data)["files"]])
    return {one.name: one for one in files}


def write_end(to: Folder, files: Iterable[Stored]) -> None:
    values = {"files": [[one.name, one.sha256, one.size] for one in files]}
    to.write(END, json.dumps(values, indent=1).encode())


def _read(to: Folder, name: str, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(to.read(name))
    except (ValueError, TypeError, KeyError) as error:
        raise JobError(
            f"{to.uri}/{name}: is damaged ({type(error).__name__}: {error}); restore it, or export "
            "into a new folder"
        ) from error
