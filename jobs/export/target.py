"""Where an export is written: files that appear whole, each with its SHA-256 and size."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from pipeline.errors import StorageFailed
from pipeline.storage import Folder, explain


@dataclass(frozen=True)
class Stored:
    """A file of an export.

    Args:
        name: relative to the export's folder.
        sha256: of its bytes, in hexadecimal digits.
        size: in bytes.
    """

    name: str
    sha256: str
    size: int


@dataclass
class Target:
    """The folder of an export, while a shard or its end is written.

    Args:
        to: the folder.
        check: called before each file appears; raises where another process has taken over.
        before: the files that are known to be there, by name; the same bytes are not written again.
        stored: what was written, in order. Methods may be called from several threads.
    """

    to: Folder
    check: Callable[[], None] = lambda: None
    before: Mapping[str, Stored] = field(default_factory=dict)
    stored: list[Stored] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, name: str, data: bytes) -> None:
        """Write a small file, unless it is there with the same bytes.

        Raises:
            StorageFailed: the storage does not take it.
        """
        made = Stored(name, hashlib.sha256(data).hexdigest(), len(data))
        if self.before.get(name) != made:
            self.check()
            self.to.write(name, data)
        self._note(made)

    @contextmanager
    def file(self, name: str) -> Iterator[BinaryIO]:
        """A file to be written from its start to its end, without seeking; stored after the block.

        Its bytes go to a temporary file, on a local file system beside its place, so it may be
        larger than memory. A block that raises leaves nothing.

        Raises:
            StorageFailed: the storage, or the disk of the temporary file, does not take it.
        """
        scratch = self._scratch(name)
        try:
            with _written(scratch, self.to.full_uri(name)) as raw:
                hashing = _Hashing(raw)
                buffered = io.BufferedWriter(hashing, 1 << 20)
                yield cast(BinaryIO, buffered)
                buffered.flush()
                raw.flush()
                os.fsync(raw.fileno())
            made = Stored(name, hashing.sha.hexdigest(), hashing.size)
            if self.before.get(name) != made:
                self.check()
                self.to.move_in(scratch, name)
            self._note(made)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(scratch)

    def _scratch(self, name: str) -> str:
        end = f".{name.rpartition('/')[2][:80]}.{uuid.uuid4().hex[:8]}"
        if not self.to.is_local:
            return f"{tempfile.gettempdir()}/{end}"
        folder = os.path.dirname(self.to.path(name))
        with _reported(folder):
            os.makedirs(folder, exist_ok=True)
        return f"{folder}/{end}"

    def _note(self, made: Stored) -> None:
        with self._lock:
            self.stored.append(made)


class _Hashing(io.RawIOBase):
    """What is written to a file, hashed and counted on its way."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha, self.size = file, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        self.file.write(view)
        self.sha.update(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self.size


@contextmanager
def _written(scratch: str, location: str) -> Iterator[BinaryIO]:
    here = os.path.dirname(scratch) == tempfile.gettempdir()
    with _reported(scratch if here else location), open(scratch, "wb") as file:
        yield file


@contextmanager
def _reported(location: str) -> Iterator[None]:
    """Failures of this machine's disk, as those of a storage."""
    try:
        yield
    except StorageFailed:
        raise
    except OSError as error:
        raise StorageFailed(location, explain(error, location, "written")) from error
