"""A checkpoint at an fsspec URI."""

from __future__ import annotations

import glob
import hashlib
import os
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from pipeline.errors import ErrorCode, StorageFailed, UnsupportedCheckpoint
from pipeline.locations import is_web, unknown_protocol
from pipeline.model.folder.layout import FORMS, HASHED, INDEX, describe, what_it_is
from pipeline.model.folder.node import (
    CACHE,
    CheckpointPin,
    NoRanges,
    Range,
    Remote,
    abandoned,
)
from pipeline.storage import find_all, patiently, split

PARTIAL = ".part"


class InStorage(Remote):
    """A checkpoint at an fsspec URI; a node keeps each version of it in a folder of its own."""

    VARIABLE: ClassVar[str] = CACHE

    @classmethod
    def find(cls, uri: str, cache: Path) -> InStorage:
        """The checkpoint as it is now.

        Raises:
            UnsupportedCheckpoint: it is none; nothing was copied.
        """
        root, listing = _listing(uri)
        version = _version(uri, listing)
        sizes = {name[len(root) :].lstrip("/"): int(listing[name]["size"]) for name in listing}
        return cls(uri, version, sizes, cache)

    @classmethod
    def pinned(cls, pin: CheckpointPin, cache: Path) -> InStorage:
        return cls(pin.uri, pin.version, pin.sizes, cache)

    @property
    def folder(self) -> Path:
        return self.cache / "checkpoints" / self.version

    @property
    def locks(self) -> Path:
        return self.cache / "locks"

    def copy(self, names: Collection[str]) -> None:
        self._refuse_other_versions()
        small = [name for name in names if name in self.small]
        large = [[name] for name in names if name not in self.small]
        for together in [small, *large] if small else large:
            self._copy(together)

    def _copy(self, names: Sequence[str]) -> None:
        """Copy files, which get their names when the store is found unchanged after all of them."""
        fs, root = split(self.uri)
        copies = {name: self.folder / f"{name}.{uuid.uuid4().hex[:8]}{PARTIAL}" for name in names}
        try:
            for name, path in copies.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                self._copy_one(partial(fs.get_file, f"{root}/{name}", str(path)), name)
            self._refuse_other_versions()
            for name, path in copies.items():
                if (size := path.stat().st_size) != self.sizes[name]:
                    raise OSError(
                        f"{name} of {self.uri}: {size:,} of {self.sizes[name]:,} bytes came; the "
                        "store or the network cut it off: start again"
                    )
                os.replace(path, self.folder / name)
        finally:
            for path in copies.values():
                path.unlink(missing_ok=True)

    def _copy_one(self, copy: Callable[[], None], name: str) -> None:
        try:
            patiently(copy, f"{self.uri}/{name}")
        except StorageFailed as error:
            if error.trouble.code is not ErrorCode.DISK_FULL:
                raise
            raise UnsupportedCheckpoint(
                f"no space is left in {self.folder} for {name}. Make room, or set {self.VARIABLE} "
                "to a folder on a larger disk, on every node"
            ) from error

    def remove_leftovers(self, names: Collection[str]) -> None:
        for name in names:
            target = self.folder / name
            for file in target.parent.glob(f"{glob.escape(target.name)}.*{PARTIAL}"):
                if abandoned(file):
                    file.unlink(missing_ok=True)

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        fs, root = split(self.uri)
        # A web server may answer with the whole file: an open file of fsspec finds out, and stops.
        by_one = is_web(self.uri) or not fs.async_impl
        try:
            read = partial(_in_order if by_one else _all_at_once, fs, root, ranges)
            found = patiently(read, self.uri)
        except (NotImplementedError, ValueError) as error:
            raise NoRanges(str(error)) from error
        for one, data in zip(ranges, found, strict=True):
            if len(data) != one.last - one.first:
                raise NoRanges(f"{one} gave {len(data)} bytes")
        return found

    def _refuse_other_versions(self) -> None:
        if _version(self.uri, _listing(self.uri)[1]) != self.version:
            raise UnsupportedCheckpoint(
                "its files were changed since the job started: sizes, etags or names are not those "
                "that the driver listed. Start the job again, and leave the folder of a checkpoint "
                "as it is while a job runs"
            )


def _all_at_once(fs: Any, root: str, ranges: Sequence[Range]) -> list[bytes]:
    paths = [f"{root}/{one.name}" for one in ranges]
    firsts, lasts = [one.first for one in ranges], [one.last for one in ranges]
    found: list[bytes] = fs.cat_ranges(paths, firsts, lasts, on_error="raise")
    return found


def _in_order(fs: Any, root: str, ranges: Sequence[Range]) -> list[bytes]:
    """The ranges, each file opened once; without a cache, which would read ahead by megabytes."""
    found = []
    for name, of_file in groupby(ranges, lambda one: one.name):
        with fs.open(f"{root}/{name}", "rb", cache_type="none") as file:
            for one in of_file:
                file.seek(one.first)
                found.append(file.read(one.last - one.first))
    return found


def _version(uri: str, listing: Mapping[str, Any]) -> str:
    versions = ("size", "ETag", "etag", "mtime", "created")  # as S3, GCS, files and memory say it
    hashes = ("blob_id", "last_modified")  # the Hub's file system, Azure
    state = sorted(
        (
            name,
            *(str(info.get(key)) for key in versions),
            *(str(info[key]) for key in hashes if info.get(key)),
        )
        for name, info in listing.items()
    )
    return hashlib.sha256(repr((uri, state)).encode()).hexdigest()[:16]


def _listing(uri: str) -> tuple[str, Mapping[str, Any]]:
    """The root on the file system, and the files of a checkpoint that count.

    Raises:
        UnsupportedCheckpoint: it is no checkpoint.
    """
    host, _, path = uri.partition("://")[2].partition("/")
    if host in ("huggingface.co", "hf.co"):
        name = "/".join(path.split("/")[:2])
        raise UnsupportedCheckpoint(f"it is a page of the Hugging Face Hub; give its name: {name}")
    if protocol := unknown_protocol(uri):
        raise UnsupportedCheckpoint(f"the protocol {protocol}:// is not known. {FORMS}")
    fs, root = split(uri)
    fs.invalidate_cache()  # of listings: another process may have changed the folder
    try:
        found = patiently(lambda: find_all(fs, root), uri)
    except FileNotFoundError:
        found = {}
    if not found:
        raise UnsupportedCheckpoint(f"there is no such folder. {FORMS}")
    if list(found) == [root]:
        raise UnsupportedCheckpoint(describe([root.rpartition("/")[2]]) or f"it is a file; {FORMS}")
    names = {name: name[len(root) :].lstrip("/") for name in found}
    if INDEX not in names.values():
        above = fs.exists(root.rpartition("/")[0] + f"/{INDEX}")
        raise UnsupportedCheckpoint(what_it_is(uri, names.values(), above=above))
    counted = {name: info for name, info in found.items() if name.endswith(HASHED)}
    # The page of a web server that lists a folder names its files, and nothing more.
    sized = {n: fs.info(n) if info.get("size") is None else info for n, info in counted.items()}
    if unknown := sorted(name for name, info in sized.items() if info.get("size") is None):
        raise UnsupportedCheckpoint(
            f"the server does not say how large {unknown[0]} is. Copy the folder to this machine "
            "or to object storage"
        )
    return root, sized
