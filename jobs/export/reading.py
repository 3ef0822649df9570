"""The files of pairs, read ahead of their use: many small ones side by side, few large ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from jobs.export.formats import MEDIA
from pipeline.storage import Folder

READERS = 16
LOCAL_READERS = 4
AHEAD_BYTES = 64 << 20
"""Of files in memory. A pair is read whatever its size."""
AHEAD = 32
"""Pairs in memory."""


@dataclass(frozen=True)
class Wanted:
    """A pair whose files are to be read.

    Args:
        key: of the pair.
        files: their names in the output folder, by `MEDIA`.
        sizes: their bytes, as listed.
        row: what is known of it.
    """

    key: str
    files: dict[str, str]
    sizes: dict[str, int]
    row: dict[str, Any]


@dataclass(frozen=True)
class Gone:
    """A pair that is left out since a file of it is not there any more, or is another one.

    Args:
        name: of the file, in the output folder.
        why: the end of a sentence about it.
    """

    video_id: str
    edit_id: str
    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.video_id}/{self.edit_id}: {self.name} {self.why}"


def read_files(
    output: Folder, pairs: Iterable[Wanted]
) -> Iterator[tuple[Wanted, dict[str, bytes] | Gone]]:
    """Each pair with the bytes of its files, in order; a source's are read once for edits of it
    that follow each other closely.

    Raises:
        StorageFailed: storage does not give a file that is there.
    """
    readers = LOCAL_READERS if output.is_local else READERS
    left = iter(pairs)
    ahead: deque[tuple[Wanted, dict[str, Future[bytes | str]]]] = deque()
    waiting, more = 0, True
    with ThreadPoolExecutor(readers, "export") as pool:
        try:
            while more or ahead:
                while more and len(ahead) < AHEAD and (not ahead or waiting < AHEAD_BYTES):
                    if (wanted := next(left, None)) is None:
                        more = False
                        break
                    shared = ahead[-1] if ahead else None
                    futures = {}
                    for kind, name in wanted.files.items():
                        if shared and shared[0].files.get(kind) == name:
                            futures[kind] = shared[1][kind]
                        else:
                            futures[kind] = pool.submit(_read, output, name, wanted.sizes[kind])
                    ahead.append((wanted, futures))
                    waiting += sum(wanted.sizes.values())
                if not ahead:
                    return
                wanted, futures = ahead.popleft()
                found = {kind: future.result() for kind, future in futures.items()}
                waiting -= sum(wanted.sizes.values())
                yield wanted, _whole(wanted, found)
        finally:
            for _, futures in ahead:
                for future in futures.values():
                    future.cancel()


def _read(output: Folder, name: str, size: int) -> bytes | str:
    """A file's bytes, or why it is left out."""
    try:
        data = output.read(name)
    except FileNotFoundError:
        return "is gone"
    if len(data) != size:
        return f"has {len(data)} bytes now, and had {size} before: it is being made again"
    return data


def _whole(wanted: Wanted, found: dict[str, bytes | str]) -> dict[str, bytes] | Gone:
    files = {}
    for kind in MEDIA:
        data = found.get(kind)
        if isinstance(data, str):
            ids = wanted.row["video_id"], wanted.row["edit_id"]
            return Gone(*ids, wanted.files[kind], data)
        if data is not None:
            files[kind] = data
    return files
