"""Single files at a path or URI: read, copied to this machine, looked for, written."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, BinaryIO, cast

from fsspec.spec import AbstractBufferedFile

from pipeline.errors import ErrorCode, RowError
from pipeline.locations import is_web
from pipeline.storage.patience import patience_s, patiently
from pipeline.storage.systems import protocols, split
from pipeline.storage.trouble import explain

COPY_BYTES = 8 << 20


@contextmanager
def local_copy(
    uri: str, on_read: Callable[[], None] = lambda: None, most_bytes: int | None = None
) -> Iterator[tuple[BinaryIO, str]]:
    """A file from a path or URI as a local, seekable one, and the SHA-256 of its bytes.

    A remote file is copied once to a temporary file, since decoding seeks in it; `on_read`
    is called as it is copied, and while the storage is waited for.

    Args:
        most_bytes: of a larger file no more is copied; of one in an archive its bytes there count.

    Raises:
        RowError: the file is not there, is too large, or may not or cannot be read.
    """
    with patiently(lambda: _scratch(uri), uri, on_wait=on_read) as copy:
        try:
            sha = patiently(lambda: _copied(uri, copy, on_read, most_bytes), uri, on_wait=on_read)
        except RowError:
            raise
        except Exception as error:  # each storage has its own kinds of failure
            trouble = explain(error, uri)
            raise RowError(trouble.code, f"{uri}: {trouble.text}") from error
        copy.seek(0)
        if is_web(uri):
            _refuse_web_page(uri, copy.read(64))
            copy.seek(0)
        yield cast(BinaryIO, copy), sha


def _scratch(uri: str) -> IO[bytes]:
    with keeping(uri):
        return tempfile.TemporaryFile()


def _copied(uri: str, copy: IO[bytes], on_read: Callable[[], None], most_bytes: int | None) -> str:
    """Copies a file from its start; the SHA-256 of its bytes."""
    with keeping(uri):  # what is left in its buffer is written first
        copy.seek(0)
        copy.truncate()
    sha = hashlib.sha256()
    fs, path = split(uri)
    if "file" in protocols(fs):
        _refuse_endless(uri, path)
    with PatientFile(lambda: _opened(uri), uri, on_read) as file:
        _refuse_larger(uri, file.size or 0, most_bytes)
        while block := file.read(COPY_BYTES):
            _refuse_larger(uri, copy.tell() + len(block), most_bytes)
            sha.update(block)
            _keep(copy, block, uri)
            on_read()
        if file.is_short(copy.tell()):
            raise ConnectionError(f"{copy.tell()} of {file.size} bytes came")
    if not copy.tell() and fs.isdir(path):  # object stores read a folder as nothing
        raise IsADirectoryError(uri)
    return sha.hexdigest()


def _refuse_endless(uri: str, path: str) -> None:
    """A pipe is waited for without an end, and some devices never end."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise RowError(
            ErrorCode.VIDEO_UNREADABLE,
            f"{uri}: is a pipe, a socket or a device; expected a file: copy the video into one",
        )


def _refuse_larger(uri: str, size: int, most_bytes: int | None) -> None:
    if most_bytes is not None and size > most_bytes:
        raise RowError(
            ErrorCode.VIDEO_TOO_LARGE,
            f"{uri}: has {size / 1e9:.4g} GB or more; expected at most {most_bytes / 1e9:g} GB: "
            "cut it into shorter videos, or set limits.file_gb higher",
        )


def _keep(copy: IO[bytes], block: bytes, uri: str) -> None:
    """Write to the temporary copy; that its disk is full is no trouble of the file's storage."""
    try:
        with keeping(uri):
            copy.write(block)
            copy.flush()
    except RowError:  # while this one waits for room, others have that of its first part
        os.ftruncate(copy.fileno(), 0)
        raise


@contextmanager
def keeping(name: str) -> Iterator[None]:
    """For the writing of a temporary file of this machine.

    Args:
        name: of what it is a copy.

    Raises:
        RowError: it could not be written; names the folder, and how to take another one.
    """
    try:
        yield
    except OSError as error:
        # Not the name that the error has: FFmpeg knows the file as one below /proc.
        plain = OSError(error.errno, error.strerror) if error.errno and error.strerror else error
        folder = tempfile.tempdir or os.environ.get("TMPDIR", "/tmp")
        trouble = explain(plain, f"{folder}/copy", "written")
        raise RowError(
            trouble.code,
            f"{name}: its temporary copy {trouble.text}. TMPDIR names another folder for such "
            "copies, on every node",
        ) from error


def check_file(uri: str, *, patient: bool = True) -> None:
    """Whether there is a file at a path or URI, without reading it.

    Args:
        patient: try again where storage does not answer.

    Raises:
        RowError: there is none, it is a folder, or it may not or cannot be looked at.
    """

    def look() -> None:
        fs, path = split(uri)
        if fs.info(path)["type"] == "directory":
            raise IsADirectoryError(uri)

    try:
        patiently(look, uri) if patient else look()
    except Exception as error:  # each storage has its own kinds of failure
        trouble = explain(error, uri)
        raise RowError(trouble.code, f"{uri}: {trouble.text}") from error


def _refuse_web_page(uri: str, head: bytes) -> None:
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise RowError(
            ErrorCode.VIDEO_UNREADABLE,
            f"{uri}: is a web page; expected the address that the file itself is downloaded from",
        )


@contextmanager
def open_file(uri: str) -> Iterator[BinaryIO]:
    """A file at a path or URI, to be read; seekable, and only what is read is fetched."""
    with PatientFile(lambda: _opened(uri), uri) as file:
        yield cast(BinaryIO, file)


def _opened(uri: str) -> tuple[Any, Any]:
    fs, path = split(uri)
    return fs, fs.open(path, "rb")


def is_folder(uri: str) -> bool:
    """Whether it is one; where nobody can tell, what opens it will find out."""
    fs, path = split(uri)
    if is_web(uri):
        return bool(fs.isdir(path))
    try:
        return bool(patiently(lambda: fs.info(path), uri)["type"] == "directory")
    except OSError:
        return False


class PatientFile(io.BufferedIOBase):
    """An open file whose reads are tried again while their trouble is temporary.

    All reads of a file share one patience. It comes back second by second as reads go well, so a
    file of thousands of parts, of which each fails for a while, takes twice its time and no more.

    Args:
        open_it: opens the file for reading, and gives its file system with it, which may close
            its files when nobody holds it any more; may be called again.
        location: its path or URI.
        on_wait: called before each pause.

    Raises:
        OSError: as `patiently` raises it, here and from reading; s3fs' FileExpired where the file
            was changed after a part of it was read: what was read is of another one.
    """

    def __init__(
        self,
        open_it: Callable[[], tuple[Any, Any]],
        location: str,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        self._open, self._location, self._on_wait = open_it, location, on_wait
        self._fs, self._file = patiently(open_it, location, on_wait=on_wait)
        self._reading_s = self._waiting_s = 0.0
        self._any_read = False

    @property
    def size(self) -> int | None:
        """Bytes of the whole file, if its storage said so."""
        return cast("int | None", getattr(self._file, "size", None))

    def is_short(self, came: int) -> bool:
        """Whether fewer bytes came than the storage had said."""
        return isinstance(self._file, AbstractBufferedFile) and self.size not in (None, came)

    def read(self, size: int | None = -1, /) -> bytes:
        return self._read(lambda: self._file.read(-1 if size is None else size))

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._read(lambda: self._file.readline(-1 if size is None else size))

    def read1(self, size: int = -1, /) -> bytes:
        return self.read(COPY_BYTES if size < 0 else size)

    def _read(self, action: Callable[[], bytes]) -> bytes:
        if not self._file.seekable():  # a stream: what was lost does not come again
            return action()
        start, began = self._file.tell(), time.monotonic()
        last = began
        changed: OSError | None = None

        def again() -> bytes:
            nonlocal last, changed
            last = time.monotonic()
            try:
                if self._file.tell() != start:
                    self._file.seek(start)
                return action()
            except OSError as error:
                if type(error).__name__ != "FileExpired":
                    raise
                self._open_again()
                if not self._any_read:  # the listing from which it was opened was old
                    raise
                changed = error
                return b""

        left_s = min(patience_s(), patience_s() + self._reading_s - self._waiting_s)
        try:
            data = patiently(again, self._location, on_wait=self._on_wait, within_s=left_s)
        finally:
            self._waiting_s += last - began
        if changed:
            raise changed
        self._reading_s += time.monotonic() - last
        self._any_read = self._any_read or bool(data)
        return data

    def _open_again(self) -> None:
        self._fs.invalidate_cache()
        stale, (self._fs, self._file) = self._file, self._open()
        stale.close()

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def fileno(self) -> int:
        return int(self._file.fileno())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
