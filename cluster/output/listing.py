"""The files of a folder with their sizes, by as few requests as its storage allows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from pipeline.storage import Folder


def file_sizes(folder: Folder, name: str) -> Iterator[tuple[str, int]]:
    """All files below a name and their bytes, in any order.

    10^6 local files take some 5 s; object storage lists 1000 with a request, in some 0.1 s.
    """
    if folder.is_local:
        yield from _local_sizes(folder.path(name), name)
        return
    folder.fs.invalidate_cache()
    try:
        found = folder.fs.find(folder.path(name), detail=True)
    except FileNotFoundError:
        return
    base = len(folder.path().lstrip("/")) + 1
    for path, about in found.items():
        yield str(path).lstrip("/")[base:], int(about["size"] or 0)


def _local_sizes(path: str, name: str) -> Iterator[tuple[str, int]]:
    try:
        entries = os.scandir(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            inside = f"{name}/{entry.name}"
            if entry.is_dir():
                yield from _local_sizes(entry.path, inside)
            else:
                with suppress(FileNotFoundError):  # removed meanwhile
                    yield inside, entry.stat().st_size
