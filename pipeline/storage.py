"""The one seam to storage: a folder at a path or at any fsspec URI."""

from __future__ import annotations

import glob
import hashlib
import mimetypes
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

import fsspec

from pipeline.errors import ErrorCode, RowError, Trouble, causes_of, http_status
from pipeline.locations import (
    EXTRAS,
    WINDOWS,
    beside,
    is_local,
    is_web,
    links,
    problem,
    protocol,
)

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
        fs, root = split(self.uri)
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
def local_copy(
    uri: str, on_read: Callable[[], None] = lambda: None
) -> Iterator[tuple[BinaryIO, str]]:
    """A file from a path or URI as a local, seekable one, and the SHA-256 of its bytes.

    A remote file is copied once to a temporary file, since decoding seeks in it; `on_read`
    is called as it is copied.

    Raises:
        RowError: the file is not there, or may not or cannot be read.
    """
    with tempfile.TemporaryFile() as copy:
        sha = hashlib.sha256()
        try:
            fs, path = split(uri)
            with fs.open(path, "rb") as file:
                while block := file.read(COPY_BYTES):
                    sha.update(block)
                    copy.write(block)
                    on_read()
            if not copy.tell() and fs.isdir(path):  # object stores read a folder as nothing
                raise IsADirectoryError(uri)
        except Exception as error:  # each storage has its own kinds of failure
            trouble = explain(error, uri)
            raise RowError(trouble.code, f"{uri}: {trouble.text}") from error
        copy.seek(0)
        if is_web(uri):
            _refuse_web_page(uri, copy.read(64))
            copy.seek(0)
        yield cast(BinaryIO, copy), sha.hexdigest()


def check_file(uri: str) -> None:
    """Whether there is a file at a path or URI, without reading it.

    Raises:
        RowError: there is none, it is a folder, or it may not or cannot be looked at.
    """
    try:
        fs, path = split(uri)
        if fs.info(path)["type"] == "directory":
            raise IsADirectoryError(uri)
    except Exception as error:  # each storage has its own kinds of failure
        trouble = explain(error, uri)
        raise RowError(trouble.code, f"{uri}: {trouble.text}") from error


def _refuse_web_page(uri: str, head: bytes) -> None:
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise RowError(
            ErrorCode.VIDEO_UNREADABLE,
            f"{uri}: is a web page; expected the address that the file itself is downloaded from",
        )


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
    if len(links(uri)) > 1:
        fs, path = fsspec.core.url_to_fs(uri)
        return fs, path.rstrip("/")
    if is_local(uri):
        fs = fsspec.filesystem("file")
        return fs, fs._strip_protocol(_local_path(uri)).rstrip("/")
    if "::" in uri:  # in a name; fsspec would take it for a chain
        kind = fsspec.get_filesystem_class(protocol(uri))
        fs, path = kind(**kind._get_kwargs_from_urls(uri)), kind._strip_protocol(uri)
    else:
        fs, path = fsspec.core.url_to_fs(uri)
    return fs, path if is_web(uri) else path.rstrip("/")


def _local_path(uri: str) -> str:
    """The path that a local URI means; one in which characters are escaped is read both ways."""
    path = uri.removeprefix("file://").removeprefix("local://")
    if path == uri:
        return path
    path = path.removeprefix("localhost") if path.startswith("localhost/") else path
    plain = unquote(path)
    return plain if not os.path.exists(path) and os.path.exists(plain) else path


def join(fs: Any, path: str) -> str:
    """What `split` took apart: a URI that stands alone; a local one stays a plain path."""
    return path if "file" in _protocols(fs) else str(fs.unstrip_protocol(path))


def neighbour(uri: str, path: str) -> str:
    """The URI of another path on the file system of `uri`, which may be a chain of them."""
    return beside(uri, path) if len(links(uri)) > 1 else join(split(uri)[0], path)


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


def is_folder(uri: str) -> bool:
    fs, path = split(uri)
    return bool(fs.isdir(path))


NO_CREDENTIALS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}
    | {"TokenRetrievalError", "DefaultCredentialsError", "ProfileNotFound"}
)
UNREACHABLE = frozenset(
    {"ConnectionError", "TimeoutError", "gaierror", "ClientConnectionError", "HTTPClientError"}
    | {"ConnectError", "TransportError", "ServiceRequestError"}
)
"""Names of exceptions, and of their bases, of the packages that speak to each storage."""


def explain(error: BaseException, uri: str, doing: str = "read") -> Trouble:
    """What an exception from reading a location means, or from its being `written`.

    Storages differ: one wraps what happened in a FileNotFoundError, another has exceptions of its
    own. So the causes of an exception count, and their HTTP status.
    """
    causes = causes_of(error)
    status = next((code for cause in causes if (code := http_status(cause))), None)
    known = _explain_location(error, uri)
    known = known or next((k for c in causes if (k := _explain_cause(c, uri, doing))), None)
    if known:
        return known
    if isinstance(error, PermissionError) or status in (401, 403):
        why = f"HTTP {status}" if status else str(error)
        hint = "" if is_local(uri) else "; check the credentials and what they allow"
        return Trouble(ErrorCode.STORAGE, f"may not be {doing} ({why}){hint}")
    if status and status not in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return Trouble(ErrorCode.STORAGE, f"the server answered HTTP {status}: {causes[-1]}")
    if doing == "read":
        if isinstance(error, IsADirectoryError) or _is_folder_after_all(error, uri):
            return Trouble(
                ErrorCode.VIDEO_NOT_FOUND, "is a folder; expected a file: name one in it"
            )
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return _not_found(uri)
        if isinstance(error, ValueError | TypeError):
            return Trouble(ErrorCode.BAD_URI, f"cannot be opened: {error}")
    return Trouble(ErrorCode.STORAGE, f"cannot be {doing}: {type(error).__name__}: {error}")


def _explain_location(error: BaseException, uri: str) -> Trouble | None:
    """What is wrong with the location itself, whatever the storage made of it."""
    if why := problem(uri):
        return Trouble(ErrorCode.BAD_URI, why)
    if isinstance(error, ImportError):
        names = [protocol(link) or "" for link in links(uri)]
        extra = next((EXTRAS[name] for name in names if name in EXTRAS), None)
        hint = f"; `pip install 'retake[{extra}]'` installs it" if extra else ""
        return Trouble(ErrorCode.BAD_URI, f"needs a package that is not installed: {error}{hint}")
    last = links(uri)[-1]
    host = urlsplit(last).netloc if is_local(last) and protocol(last) else ""
    if isinstance(error, FileNotFoundError) and host not in ("", "localhost"):
        text = f"names the host {host!r}; a file of this machine is file:///path, or a plain path"
        return Trouble(ErrorCode.BAD_URI, text)
    return None


def _explain_cause(cause: BaseException, uri: str, doing: str) -> Trouble | None:
    """What one of an error's causes means where its kind says enough."""
    kinds = {kind.__name__ for kind in type(cause).__mro__}
    last = links(uri)[-1]
    if kinds & NO_CREDENTIALS:
        keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        hint = f"set {keys}" if protocol(last) in ("s3", "s3a") else "log in to the storage"
        return Trouble(ErrorCode.STORAGE, f"may not be {doing}: no credentials: {cause}; {hint}")
    if kinds & UNREACHABLE:
        host = urlsplit(last).netloc if is_web(uri) else "the storage"
        reason = str(cause) or type(cause).__name__
        hint = "check its name and this machine's network"
        return Trouble(ErrorCode.STORAGE, f"{host} cannot be reached: {reason}; {hint}")
    if "NoSuchBucket" in kinds:
        bucket = urlsplit(last).netloc
        text = f"there is no bucket {bucket!r}" if bucket else "it names no bucket"
        return Trouble(ErrorCode.VIDEO_NOT_FOUND, text)
    if "InvalidURL" in kinds:
        return Trouble(ErrorCode.BAD_URI, "is no valid address")
    if kinds & {"BadZipFile", "ReadError"}:
        return Trouble(ErrorCode.VIDEO_UNREADABLE, f"{last} is no such archive: {cause}")
    return None


def _not_found(uri: str) -> Trouble:
    *heads, last = links(uri)
    hint = ""
    if heads:
        fs, path = split(last)
        hint = f" in {last}" if fs.exists(path) else f": {last}"
    elif WINDOWS.match(uri) and os.name != "nt":
        hint = "; it is a path of Windows; expected one of this machine, such as /data/a.mp4"
    elif uri != uri.strip():
        hint = "; it begins or ends with a space"
    elif is_local(uri) and "%" in uri and os.path.exists(unquote(uri)):
        hint = f"; there is {unquote(uri)}: write a plain path without escapes such as %20"
    elif is_local(uri) and glob.has_magic(uri):
        hint = "; it is a pattern: name each file, as `retake manifest` does"
    elif is_local(uri):
        hint = f"; {_nearest_folder(split(uri)[1])}"
    return Trouble(ErrorCode.VIDEO_NOT_FOUND, f"there is no such file{hint}")


def _nearest_folder(path: str) -> str:
    """What to check of the path of a file that is not there."""
    around = [Path(path), *Path(path).parents]
    missing = next(
        (one for one, above in pairwise(around) if above.is_dir() or not one.name), around[0]
    )
    if missing == around[0]:
        return f"its folder is there: check the name {missing.name!r}"
    return f"its folder {missing} is missing too: check the path"


def _is_folder_after_all(error: BaseException, uri: str) -> bool:
    if is_local(uri) or is_web(uri) or not isinstance(error, FileNotFoundError | ValueError):
        return False
    with suppress(Exception):  # what went wrong before goes wrong again
        return is_folder(uri)
    return False
