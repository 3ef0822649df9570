"""A folder at a path or at any fsspec URI, whose files are there whole or not at all."""

from __future__ import annotations

import errno
import mimetypes
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any, BinaryIO, TypeVar, cast

from pipeline.storage.files import PatientFile
from pipeline.storage.listing import files_below
from pipeline.storage.patience import patiently
from pipeline.storage.systems import protocols, split, upload_object, write_object

T = TypeVar("T")


@dataclass(frozen=True)
class Folder:
    """A folder, local or in object storage. Names are relative to it, with `/` between parts.

    A file appears whole or not at all: object stores work so, and on a file system it is written
    beside its place and renamed.

    Temporary troubles of the storage are waited out. What fails still is a StorageFailed, an
    OSError that names the file, with its code; that a file is missing stays a FileNotFoundError.

    Args:
        uri: a local path or any URI that fsspec knows (`s3://`, `gs://`, `memory://`).
    """

    uri: str

    @cached_property
    def _fs_and_root(self) -> tuple[Any, str]:
        fs, root = split(self.uri)
        return fs, root.rstrip("/")

    @property
    def fs(self) -> Any:
        return self._fs_and_root[0]

    @property
    def is_local(self) -> bool:
        return "file" in protocols(self.fs)

    def path(self, name: str = "") -> str:
        """The path of a name as `fs` wants it.

        Raises:
            ValueError: the name leads out of the folder. Names come from manifests and from files
                that somebody may have altered; none is followed to another place.
        """
        if name.startswith("/") or ".." in name.replace("\\", "/").split("/") or "\0" in name:
            raise ValueError(f"the name {name!r} leads out of {self.uri}")
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
        """Whether there is a file or a folder.

        Raises:
            StorageFailed: nobody can tell.
        """
        try:
            self._patiently(lambda: self.fs.info(self.path(name)), name)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def read(self, name: str) -> bytes:
        return cast(bytes, self._patiently(lambda: self.fs.cat_file(self.path(name)), name))

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """The bytes start <= i < end of a file."""
        path = self.path(name)
        found = self._patiently(lambda: self.fs.cat_file(path, start=start, end=end), name)
        return cast(bytes, found)

    def size(self, name: str) -> int:
        return int(self._patiently(lambda: self.fs.info(self.path(name))["size"], name))

    def modified(self, name: str) -> datetime | None:
        """When a file was written, by the clock of the storage; None where it does not say."""
        try:
            self.fs.invalidate_cache()
            found = self.fs.modified(self.path(name))
        except Exception:  # not every client has it, and it only informs
            return None
        if not isinstance(found, datetime):
            return None
        return found if found.tzinfo else found.replace(tzinfo=UTC)

    def open(self, name: str) -> BinaryIO:
        path = self.path(name)
        file = PatientFile(lambda: (self.fs, self.fs.open(path, "rb")), self.full_uri(name))
        return cast(BinaryIO, file)

    def write(self, name: str, data: bytes) -> None:
        path = self.path(name)
        if self.is_local:
            self._patiently(lambda: _write_whole(path, data), name, "written")
        else:
            kind = _content_type(self.fs, name)
            self._patiently(lambda: write_object(self.fs, path, data, **kind), name, "written")

    def move_in(self, local: str, name: str) -> None:
        """Make a whole file of this machine the file of a name; it may be larger than memory.

        Args:
            local: its path; in a local folder one on the same file system, which is renamed. Else
                it stays where it is.
        """
        path = self.path(name)
        if self.is_local:
            self._patiently(lambda: os.replace(local, path), name, "written")
        else:
            kind = _content_type(self.fs, name)
            send = partial(upload_object, self.fs, local, path, **kind)
            self._patiently(send, name, "written")

    def write_at(self, name: str, start: int, data: bytes) -> None:
        """Have a local file end with these bytes, from a place on; what stood there goes.

        For files that grow, as logs do: unlike others they are there before they are whole.
        """
        assert self.is_local, f"{self.uri}: object storage has no files that grow"
        path = self.path(name)
        self._patiently(lambda: _write_end(path, start, data), name, "written")

    def list(self, name: str = "", *, scratch: bool = False) -> list[str]:
        """The names of all files below a name, in order; empty where there is nothing.

        Links to folders are left out: what they lead to may be no part of this folder.

        Args:
            scratch: only those that a killed process left half written, which do not count else.
        """
        names = sorted(name for name, _ in self._files_below(name, sized=False))
        return [n for n in names if n.rpartition("/")[2].startswith(".") == scratch]

    def sizes(self, name: str = "") -> Iterator[tuple[str, int]]:
        """The name and the bytes of each file below a name, in any order; also half written ones.

        Links to folders are left out, as in `list`.
        """
        return self._files_below(name, sized=True)

    def _files_below(self, name: str, *, sized: bool) -> Iterator[tuple[str, int]]:
        base = len(self.path().lstrip("/")) + 1
        found = files_below(self.fs, self.path(name), self.full_uri(name), sized=sized)
        for path, size in found:
            if inside := path.lstrip("/")[base:]:
                yield inside, size

    def remove_folder(self, name: str) -> None:
        """Remove all files below a name; that there are none is no error.

        Of a link only the link is removed, never what it leads to.
        """
        if self.is_local and os.path.islink(self.path(name)):
            self.remove(name)
            return
        for file in self.list(name):
            self.remove(file)
        if self.is_local:
            shutil.rmtree(self.path(name), ignore_errors=True)

    def remove(self, name: str) -> None:
        """Remove a file; that it is gone already is no error."""
        with suppress(FileNotFoundError):
            self._patiently(lambda: self.fs.rm_file(self.path(name)), name, "removed")

    def _patiently(self, action: Callable[[], T], name: str, doing: str = "read") -> T:
        return patiently(action, self.full_uri(name), doing)


def write_file(uri: str, data: bytes) -> None:
    """Write a file at a path or URI; it appears whole or not at all."""
    fs, path = split(uri)
    if "file" in protocols(fs):
        folder, _, name = path.rpartition("/")
        Folder(folder or "/").write(name, data)
    else:
        patiently(lambda: write_object(fs, path, data), uri, "written")


def _write_whole(path: str, data: bytes) -> None:
    """Write a local file beside its place, and rename it."""
    folder, _, name = path.rpartition("/")
    try:
        os.makedirs(folder or "/", exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "is a file", error.filename) from None
    scratch = f"{folder}/.{name[:80]}.{uuid.uuid4().hex[:8]}"
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


def _write_end(path: str, start: int, data: bytes) -> None:
    """Let a local file end with these bytes. Another try after a failure gives the same file."""
    os.makedirs(os.path.dirname(path) or "/", exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    with open(descriptor, "wb") as file:
        file.seek(start)
        file.write(data)
        file.truncate()


def _content_type(fs: Any, name: str) -> dict[str, str]:
    """The option that says a file's type, without which a browser saves what it should show."""
    kind = mimetypes.guess_type(name)[0]
    options = {"s3": "ContentType", "gs": "content_type"}
    option = next((options[known] for known in protocols(fs) if known in options), None)
    if option is None or kind is None:
        return {}
    return {option: f"{kind}; charset=utf-8" if kind.startswith("text/") else kind}
