"""A node's copy of a checkpoint that lies elsewhere: fetched once, whichever process asks first."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.errors import UnsupportedCheckpoint
from pipeline.model.folder.layout import listed

CACHE = "RETAKE_CACHE"
"""The environment variable that moves `~/.cache/retake`."""

ABANDONED_S = 900.0
"""A partial file that was not written to for so long is of a process that is gone. A lock alone
does not tell: some network file systems give it to every process, or keep it within one node, and
then another one is still at work."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointPin:
    """A checkpoint at one version: what a driver found and every rank is to load.

    Args:
        uri: as the job names it.
        version: the commit on the Hub, or a digest of the listing in object storage (names, sizes,
            etags); "" for a folder of the node's own.
        fingerprint: as in `CheckpointInfo`.
        sizes: bytes of each file that counts, by its name; none for a folder of the node's own.
    """

    uri: str
    version: str
    fingerprint: str
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Range:
    """The bytes first <= i < last of a file."""

    name: str
    first: int
    last: int


class NoRanges(Exception):
    """A store gives its files only whole."""


@dataclass(frozen=True)
class Remote(ABC):
    """A checkpoint in object storage or on the Hub, at one version.

    Args:
        uri: as the job names it.
        version, sizes: as in `CheckpointPin`.
        cache: this node's folder for what comes from elsewhere.
    """

    uri: str
    version: str
    sizes: Mapping[str, int]
    cache: Path

    VARIABLE: ClassVar[str]
    """The environment variable that moves the folder."""

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where this node has the files, or will have them. Each file there is whole."""

    @property
    @abstractmethod
    def locks(self) -> Path:
        """A folder of locks, which a process of this node holds while it fetches."""

    @abstractmethod
    def copy(self, names: Collection[str]) -> None:
        """Copy files into the folder; one that is there is whole.

        Raises:
            UnsupportedCheckpoint: this version is not to be had.
        """

    @abstractmethod
    def remove_leftovers(self, names: Collection[str]) -> None:
        """Remove what killed processes left of files that they were fetching (`abandoned`)."""

    @abstractmethod
    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """Parts of files, without the rest of them.

        Raises:
            NoRanges: they are to be had only whole.
        """

    @property
    def small(self) -> list[str]:
        """The files without weights."""
        return [name for name in self.sizes if not name.endswith(".safetensors")]

    def of(self, parts: Collection[str]) -> list[str]:
        """The small files, and the weights of some parts."""
        return [name for name in self.sizes if name in self.small or name.split("/")[0] in parts]

    def missing(self, names: Collection[str]) -> list[str]:
        """Those of the files that this node does not have."""
        return [name for name in names if _size(self.folder / name) != self.sizes[name]]


def cache_folder() -> Path:
    """Where this node keeps checkpoints from object storage."""
    folder = os.path.expanduser(os.environ.get(CACHE) or "~/.cache/retake")
    if folder.startswith("~"):  # a user without a home, as containers have
        return Path(tempfile.gettempdir()) / f"retake-{os.getuid()}"
    return Path(folder)


def fetch(remote: Remote, names: Collection[str]) -> None:
    """Have files on this node: fetched by one process, while all others that need them wait.

    The weights of each part have a lock of their own: who needs the transformer does not wait for
    the text encoder.

    Raises:
        UnsupportedCheckpoint: this version is not to be had, or there is no room for it.
    """
    parts: dict[str, list[str]] = defaultdict(list)
    for name in remote.missing(names):
        parts["configuration" if name in remote.small else name.split("/")[0]].append(name)
    for part, files in parts.items():
        with _locked(remote, part) as alone:
            if alone:
                remote.remove_leftovers(files)
            if missing := remote.missing(files):
                _check_room(remote, remote.missing(names))
                remote.copy(missing)
    if missing := remote.missing(names):
        raise UnsupportedCheckpoint(
            f"{listed(missing)}: of another size after fetching than before; the checkpoint is "
            "being changed. Start again when it is whole"
        )


@contextmanager
def _locked(remote: Remote, part: str) -> Iterator[bool]:
    """Hold a lock that the system gives back when this process ends, however it ends.

    The file stays: another process may wait for this very file. Some network file systems have no
    locks: then it is not held, and processes may fetch the same; files appear whole all the same.
    """
    what = f"{part} of {remote.uri} to {remote.folder}"
    try:
        remote.locks.mkdir(parents=True, exist_ok=True)
        remote.folder.mkdir(parents=True, exist_ok=True)
        file = (remote.locks / f"retake-{remote.version}-{part}.lock").open("w")
    except OSError as error:
        raise UnsupportedCheckpoint(
            f"it cannot be fetched to {remote.folder}: {error}. Set {remote.VARIABLE} to a folder "
            "that may be written to, on every node"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("waiting for another process of this node, which fetches %s", what)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("%s cannot be locked (%s)", file.name, error)
            yield False
            return
        yield True


def _check_room(remote: Remote, missing: Collection[str]) -> None:
    there = next(path for path in (remote.folder, *remote.folder.parents) if path.exists())
    needed, free = sum(remote.sizes[name] for name in missing), shutil.disk_usage(there).free
    if needed > free:
        raise UnsupportedCheckpoint(
            f"there is no room for it: {listed(missing)} need {needed:,} bytes and {there} has "
            f"{free:,} free. Make room, or set {remote.VARIABLE} to a folder on a larger disk, on "
            "every node"
        )


def abandoned(file: Path) -> bool:
    """Whether no process writes to a partial file any more."""
    try:
        return time.time() - file.stat().st_mtime > ABANDONED_S
    except OSError:  # its process has ended just now
        return False


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
