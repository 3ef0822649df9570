"""The one seam to storage: a folder at a path or at any fsspec URI."""

from __future__ import annotations

import glob
import hashlib
import mimetypes
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, cast

import fsspec

from pipeline.errors import ErrorCode, RowError

COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class Folder:
    """A folder, local or in object storage. Names are relative to it, with `/` between parts.

    A file appears whole or not at all: object stores work so, and on a file system it is written
    beside its place and renamed.

    Args:
        uri: a local path or any URI that fsspec knows (`s3://`, `gs://`, `memory://`).
    """

    uri: str

    @cached_property
    def _fs_and_root(self) -> tuple[Any, str]:
        fs, root = fsspec.core.url_to_fs(self.uri)
        return fs, root.rstrip("/")

    @property
    def fs(self) -> Any:
        return self._fs_and_root[0]

    @property
    def is_local(self) -> bool:
        return "file" in _protocols(self.fs)

    def path(self, name: str = "") -> str:
        """The path of a name as `fs` wants it."""
        root = self._fs_and_root[1]
        return f"{root}/{name}" if name else root

    def full_uri(self, name: str) -> str:
        """What a person or another program opens: an absolute path, or a URI."""
        return (
            str(self.fs.unstrip_protocol(self.path(name))) if not self.is_local else self.path(name)
        )

    def child(self, name: str) -> Folder:
        return Folder(f"{self.uri.rstrip('/')}/{name}")

    def exists(self, name: str) -> bool:
        return bool(self.fs.exists(self.path(name)))

    def read(self, name: str) -> bytes:
        return cast(bytes, self.fs.cat_file(self.path(name)))

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """The bytes start <= i < end of a file."""
        return cast(bytes, self.fs.cat_file(self.path(name), start=start, end=end))

    def size(self, name: str) -> int:
        return int(self.fs.info(self.path(name))["size"])

    def open(self, name: str) -> BinaryIO:
        return cast(BinaryIO, self.fs.open(self.path(name), "rb"))

    def write(self, name: str, data: bytes) -> None:
        path = self.path(name)
        if not self.is_local:
            self.fs.pipe_file(path, data, **_content_type(self.fs, name))
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        scratch = f"{os.path.dirname(path)}/.{os.path.basename(path)[:80]}.{uuid.uuid4().hex[:8]}"
        try:
            with open(scratch, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        except BaseException:
            if os.path.exists(scratch):
                os.unlink(scratch)
            raise

    def list(self, name: str = "", *, scratch: bool = False) -> list[str]:
        """The names of all files below a name, in order; empty where there is nothing.

        Args:
            scratch: only those that a killed process left half written, which do not count else.
        """
        root = self.path(name)
        self.fs.invalidate_cache()
        try:
            found = self.fs.find(root)
        except FileNotFoundError:
            return []
        base = self.path().lstrip("/")
        names = sorted(str(path).lstrip("/")[len(base) + 1 :] for path in found)
        return [n for n in names if n.rsplit("/", 1)[-1].startswith(".") == scratch]

    def remove_folder(self, name: str) -> None:
        """Remove all files below a name; that there are none is no error."""
        for file in self.list(name):
            self.remove(file)
        if self.is_local:
            shutil.rmtree(self.path(name), ignore_errors=True)

    def remove(self, name: str) -> None:
        """Remove a file; that it is gone already is no error."""
        with suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))


@contextmanager
def local_copy(uri: str) -> Iterator[tuple[BinaryIO, str]]:
    """A file from a path or URI as a local, seekable one, and the SHA-256 of its bytes.

    A remote file is copied once to a temporary file, since decoding seeks in it.

    Raises:
        RowError: the file is not there, or may not or cannot be read.
    """
    with tempfile.TemporaryFile() as copy:
        sha = hashlib.sha256()
        try:
            fs, path = fsspec.core.url_to_fs(uri)
            with fs.open(path, "rb") as file:
                while block := file.read(COPY_BYTES):
                    sha.update(block)
                    copy.write(block)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise RowError(ErrorCode.VIDEO_NOT_FOUND, f"{uri}: there is no such file") from error
        except PermissionError as error:
            raise RowError(ErrorCode.STORAGE, f"{uri}: may not be read: {error}") from error
        except (ValueError, ImportError) as error:
            raise RowError(ErrorCode.BAD_URI, f"{uri}: cannot be opened: {error}") from error
        except Exception as error:  # each storage has its own kinds of failure
            text = f"{type(error).__name__}: {error}"
            raise RowError(ErrorCode.STORAGE, f"{uri}: could not be read: {text}") from error
        copy.seek(0)
        yield cast(BinaryIO, copy), sha.hexdigest()


def _content_type(fs: Any, name: str) -> dict[str, str]:
    """The option that says a file's type, without which a browser saves what it should show."""
    kind = mimetypes.guess_type(name)[0]
    options = {"s3": "ContentType", "gs": "content_type"}
    option = next((options[known] for known in _protocols(fs) if known in options), None)
    if option is None or kind is None:
        return {}
    return {option: f"{kind}; charset=utf-8" if kind.startswith("text/") else kind}


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def split(uri: str) -> tuple[Any, str]:
    """The file system of a path or URI, and the path on it, without a slash at its end."""
    fs, path = fsspec.core.url_to_fs(uri)
    return fs, path.rstrip("/")


def join(fs: Any, path: str) -> str:
    """What `split` took apart: a URI that stands alone; a local one stays a plain path."""
    return path if "file" in _protocols(fs) else str(fs.unstrip_protocol(path))


@contextmanager
def open_file(uri: str) -> Iterator[BinaryIO]:
    """A file at a path or URI, to be read; seekable, and only what is read is fetched."""
    fs, path = split(uri)
    with fs.open(path, "rb") as file:
        yield cast(BinaryIO, file)


def write_file(uri: str, data: bytes) -> None:
    """Write a file at a path or URI; it appears whole or not at all."""
    fs, path = split(uri)
    if "file" not in _protocols(fs):
        fs.pipe_file(path, data)
        return
    folder, _, name = path.rpartition("/")
    Folder(folder or "/").write(name, data)


def matching_files(uri: str) -> list[str]:
    """The files that a glob names, in order; a name with a file of its own is no glob."""
    fs, path = split(uri)
    is_glob = glob.has_magic(path) and not fs.exists(path)
    return [join(fs, found) for found in sorted(fs.glob(path))] if is_glob else [uri]


def is_folder(uri: str) -> bool:
    fs, path = split(uri)
    return bool(fs.isdir(path))


def unknown_protocol(uri: str) -> str | None:
    """The first protocol of a URI, or of a chain of them, that nothing here can open."""
    for link in uri.split("::"):  # as in simplecache::s3://bucket/clip.mp4
        protocol, found, _ = link.partition("://")
        if found and protocol not in fsspec.available_protocols():
            return protocol
    return None
