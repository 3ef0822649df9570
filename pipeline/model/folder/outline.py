"""The outline of a checkpoint that lies elsewhere: all that checks and fingerprint read of it.

Of 20 GB of weights they read the headers, and a few kilobytes of each tensor: some megabytes.
"""

from __future__ import annotations

import os
import tempfile
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.model.folder.fingerprint import read_by_samples
from pipeline.model.folder.node import NoRanges, Range, Remote, fetch
from pipeline.model.folder.weights import header_length

BEGINNING = 1 << 17
"""Bytes; holds most headers."""
GAP = 1 << 16
"""Bytes between two ranges that are not worth a request of their own."""


@contextmanager
def outline(remote: Remote) -> Iterator[Path]:
    """A folder with the small files, and of each file of weights what is ever looked at.

    Those have their size, with holes where nothing was read, so that a check reads them like whole
    ones. The folder goes at the end: nothing may take it for the checkpoint. What was read of a
    version is kept in the cache.

    Raises:
        NoRanges: the store cannot give parts of files, or this node cannot hold files with holes.
    """
    fetch(remote, remote.small)
    large = [name for name in remote.sizes if name not in remote.small]
    # The messages of a check tell a folder of the Hub by its name.
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / remote.folder.parent.name / remote.folder.name
        for name in remote.small:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(remote.folder.absolute() / name)
        for name in large:
            _make_hole(folder / name, remote.sizes[name])
        saved = remote.cache / "outlines" / f"{remote.version}.zip"
        if not _restore(folder, saved):
            found = _read_outlines(folder, remote, large)
            with suppress(OSError):  # it is read again at the next start
                _keep(found, saved)
        yield folder


def _make_hole(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("wb") as file:
            file.truncate(size)
    except OSError as error:
        raise NoRanges(str(error)) from error


def _read_outlines(folder: Path, remote: Remote, names: Sequence[str]) -> list[tuple[Range, bytes]]:
    """Three rounds of requests, each for all files at once: beginnings, headers, samples."""
    found: list[tuple[Range, bytes]] = []

    def read(ranges: Sequence[Range]) -> None:
        new = list(zip(ranges, remote.read(ranges) if ranges else [], strict=True))
        for one, data in new:
            _write(folder / one.name, one.first, data)
        found.extend(new)

    have = {name: min(BEGINNING, remote.sizes[name]) for name in names}
    read([Range(name, 0, have[name]) for name in names if have[name]])
    ends = {name: _end_of_header(folder / name) for name in names}
    longer = [name for name in names if ends[name] > have[name]]
    read([Range(name, have[name], ends[name]) for name in longer])
    have |= {name: ends[name] for name in longer}
    samples = [
        Range(name, max(first, have[name]), min(last, remote.sizes[name]))
        for name in names
        for first, last in read_by_samples(folder / name)
    ]
    read(merged([one for one in samples if one.first < one.last]))
    return found


def _keep(found: Sequence[tuple[Range, bytes]], place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f"{place.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with zipfile.ZipFile(partial, "w") as file:
            for one, data in found:
                file.writestr(f"{one.first}/{one.name}", data)
        os.replace(partial, place)
    finally:
        partial.unlink(missing_ok=True)


def _restore(folder: Path, place: Path) -> bool:
    """Whether what an earlier start read of this version was found, and written."""
    try:
        with zipfile.ZipFile(place) as file:
            for entry in file.namelist():
                first, _, name = entry.partition("/")
                _write(folder / name, int(first), file.read(entry))
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return True


def _write(path: Path, first: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(first)
        file.write(data)


def _end_of_header(path: Path) -> int:
    with path.open("rb") as stream:
        try:
            return 8 + header_length(stream, path.stat().st_size)
        except ValueError:  # no safetensors file: its beginning is all that is looked at
            return 0


def merged(ranges: Sequence[Range]) -> list[Range]:
    """The ranges in order, with those that lie closer than `GAP` made one."""
    found: list[Range] = []
    for one in sorted(ranges, key=lambda r: (r.name, r.first)):
        before = found[-1] if found else None
        if before and before.name == one.name and one.first - before.last <= GAP:
            found[-1] = Range(one.name, before.first, max(before.last, one.last))
        else:
            found.append(one)
    return found
