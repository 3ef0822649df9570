"""What an exception of a storage means: its code, whether it is temporary, and the way out."""

from __future__ import annotations

import errno
import glob
import io
import os
import socket
from contextlib import suppress
from http import HTTPStatus
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import ErrorCode, StorageFailed, Trouble, causes_of, http_status
from pipeline.locations import EXTRAS, WINDOWS, is_local, is_web, links, problem, protocol
from pipeline.storage.systems import split

NO_CREDENTIALS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}
    | {"TokenRetrievalError", "DefaultCredentialsError", "ProfileNotFound"}
)
NO_ANSWER = frozenset(
    {"TimeoutError", "ReadTimeoutError", "ReadTimeout", "ServiceResponseTimeoutError"}
)
UNREACHABLE = frozenset(
    {"ConnectionError", "gaierror", "ClientConnectionError", "HTTPClientError"}
    | {"ConnectError", "TransportError", "ServiceRequestError"}
)
UNTRUSTED = frozenset(
    {"SSLCertVerificationError", "CertificateVerifyError", "ClientConnectorCertificateError"}
)
CUT_OFF = frozenset(
    {"ClientPayloadError", "IncompleteRead", "IncompleteReadError", "ResponseParserError"}
    | {"ChunkedEncodingError", "ChecksumError", "FlexibleChecksumError", "FileExpired"}
    | {"ServiceResponseError", "ResponseStreamingError"}
)
"""Names of exceptions, and of their bases, of the packages that speak to each storage."""

CLIENTS = frozenset({"aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google"})
CLIENTS = CLIENTS | {"requests", "s3fs", "urllib3"}
"""Packages whose errors are not all OSErrors."""

BUSY = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY}
    | {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.BAD_GATEWAY}
    | {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
)
TEMPORARY_CODES = ("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch")
"""Of S3, which come with the status of a wrong request, and tell of a broken upload."""

NO_HOST = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
"""Numbers of a name that no server has. A server of names that does not answer has EAI_AGAIN."""

NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
FULL = NO_ROOM | {errno.EFBIG}
AWAY = {errno.ENOTCONN, errno.ESHUTDOWN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN}
AWAY |= {errno.ENETUNREACH, errno.ENETRESET, errno.ENONET, errno.ENODEV}
SHAKY = {errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.EAGAIN, errno.EBUSY, errno.ENOLCK}
SHAKY |= {errno.EMFILE, errno.ENFILE}
"""Numbers of errors of a file system: a network one has bad moments, as a storage has."""


def is_definite(error: BaseException) -> bool:
    """Whether a file is known to be missing, there already or a folder.

    A client may raise FileNotFoundError for a connection that failed; that one is not.
    """
    kinds = FileNotFoundError | NotADirectoryError | IsADirectoryError | FileExistsError
    return isinstance(error, kinds) and not any(map(_is_away, causes_of(error)))


def is_of_storage(error: BaseException) -> bool:
    """Whether an error, or a temporary one that it was raised for, is of a storage.

    A client may fail over a failure: s3fs raises an IndexError for a body that stalls.
    """
    if isinstance(error, io.UnsupportedOperation):  # an OSError that says what a file cannot do
        return False
    packages = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError | EOFError) or bool(packages & CLIENTS) or is_temporary(error)


def is_temporary(error: BaseException) -> bool:
    """Whether the same may go well a little later. Asks no storage."""
    causes = causes_of(error)
    known = next((c.trouble for c in causes if isinstance(c, StorageFailed)), None)
    if known:
        return known.temporary
    return any(map(_passing, causes)) and not any(_no_host(c) or _untrusted(c) for c in causes)


def is_full(error: BaseException) -> bool:
    """Whether there is no room on a disk, which nobody has waited for yet. Asks no storage.

    That a file is larger than its file system takes, or this process may make it, does not pass.
    """
    causes = causes_of(error)
    if any(isinstance(cause, StorageFailed) for cause in causes):
        return False
    return any(
        http_status(cause) == HTTPStatus.INSUFFICIENT_STORAGE or _number(cause) in NO_ROOM
        for cause in causes
    )


def _is_away(cause: BaseException) -> bool:
    """Whether it says that nobody could ask, rather than what the answer was."""
    return _passing(cause) or _no_host(cause) or _untrusted(cause)


def _no_host(cause: BaseException) -> bool:
    return isinstance(cause, socket.gaierror) and cause.errno in NO_HOST


def _untrusted(cause: BaseException) -> bool:
    return bool(_kinds(cause) & UNTRUSTED)


def _passing(cause: BaseException) -> bool:
    kinds = _kinds(cause)
    if kinds & (NO_ANSWER | UNREACHABLE | CUT_OFF):
        return not kinds & NO_CREDENTIALS and "InvalidURL" not in kinds
    if (status := http_status(cause)) is not None:
        return status in BUSY or _code_of(cause) in TEMPORARY_CODES
    return _number(cause) in AWAY | SHAKY and not _answered(cause)


NO_MEMORY = "this machine has no memory left for the process; give its node more, or fewer groups"


def explain(error: BaseException, uri: str, doing: str = "read") -> Trouble:
    """What an exception from reading a location means, or from its being `written`.

    Storages differ: one wraps what happened in a FileNotFoundError, another has exceptions of its
    own. So the causes of an exception count, and their HTTP status.
    """
    causes = causes_of(error)
    if failed := next((c for c in causes if isinstance(c, StorageFailed)), None):
        scratch = failed.location.rsplit("/", 1)[-1].startswith(".")  # its name says nothing
        if failed.location == uri or scratch:
            return failed.trouble
        below = failed.location.removeprefix(uri.rstrip("/") + "/")
        text = f"{below}: {failed.trouble.text}"
        return Trouble(failed.trouble.code, text, failed.trouble.temporary)
    if any(isinstance(c, MemoryError) or getattr(c, "errno", 0) == errno.ENOMEM for c in causes):
        return Trouble(ErrorCode.OUT_OF_MEMORY, f"cannot be {doing}: {NO_MEMORY}")
    status = next((code for cause in causes if (code := http_status(cause))), None)
    known = _explain_location(error, uri)
    known = known or next((k for c in causes if (k := _explain_address(c, uri))), None)
    known = known or next((k for c in causes if (k := _explain_cause(c, uri, doing))), None)
    known = known or _explain_status(status, causes[-1], uri, doing)
    known = known or next((k for c in causes if (k := _explain_number(c, uri, doing))), None)
    if known:
        return known
    if isinstance(error, PermissionError):
        return _denied(str(error), uri, doing)
    if doing == "read":
        if isinstance(error, IsADirectoryError) or _is_folder_after_all(error, uri):
            return Trouble(
                ErrorCode.VIDEO_NOT_FOUND, "is a folder; expected a file: name one in it"
            )
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return _not_found(uri)
        if isinstance(error, ValueError | TypeError):
            return Trouble(ErrorCode.BAD_URI, f"cannot be opened: {error}")
    return Trouble(
        ErrorCode.STORAGE,
        f"cannot be {doing}: {type(error).__name__}: {error}",
        is_temporary(error),
    )


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


def _explain_address(cause: BaseException, uri: str) -> Trouble | None:
    """What is wrong with the server that an address names, at every try."""
    host = urlsplit(links(uri)[-1]).netloc.rpartition("@")[2] if is_web(uri) else "the storage"
    if _no_host(cause):
        text = f"{host} cannot be reached: no server has its name ({cause}); check its spelling"
        return Trouble(ErrorCode.STORAGE_UNREACHABLE, text)
    if _untrusted(cause):
        hint = "check its address, this machine's clock and its certificates (SSL_CERT_FILE)"
        text = f"{host} cannot be trusted: {cause}; {hint}"
        return Trouble(ErrorCode.STORAGE_UNREACHABLE, text)
    return None


def _explain_cause(cause: BaseException, uri: str, doing: str) -> Trouble | None:
    """What one of an error's causes means where its kind says enough."""
    kinds = _kinds(cause)
    last = links(uri)[-1]
    host = urlsplit(last).netloc.rpartition("@")[2] if is_web(uri) else "the storage"
    reason = str(cause) or type(cause).__name__
    if kinds & NO_CREDENTIALS:
        keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        hint = f"set {keys}" if protocol(last) in ("s3", "s3a") else "log in to the storage"
        text = f"may not be {doing}: no credentials: {cause}; {hint}"
        return Trouble(ErrorCode.STORAGE_DENIED, text)
    if "InvalidURL" in kinds:
        return Trouble(ErrorCode.BAD_URI, "is no valid address")
    if "FileExpired" in kinds:  # of s3fs
        text = "was changed while it was read; run again when nothing writes to it"
        return Trouble(ErrorCode.STORAGE, text, temporary=True)
    if kinds & CUT_OFF:
        reason = reason.partition(": <")[0]  # aiohttp appends the exception
        text = f"{host} breaks off before the end: {reason}; run again, or check the network"
        return Trouble(ErrorCode.STORAGE_UNREACHABLE, text, temporary=True)
    if kinds & NO_ANSWER:
        text = f"{host} gives no answer in time: {reason}; check its load and the network"
        return Trouble(ErrorCode.STORAGE_BUSY, text, temporary=True)
    if kinds & UNREACHABLE:
        hint = "check its name and this machine's network"
        text = f"{host} cannot be reached: {reason}; {hint}"
        return Trouble(ErrorCode.STORAGE_UNREACHABLE, text, temporary=True)
    if "NoSuchBucket" in kinds:
        bucket = urlsplit(last).netloc
        text = f"there is no bucket {bucket!r}" if bucket else "it names no bucket"
        return Trouble(ErrorCode.VIDEO_NOT_FOUND if doing == "read" else ErrorCode.STORAGE, text)
    if kinds & {"BadZipFile", "ReadError"}:
        return Trouble(ErrorCode.VIDEO_UNREADABLE, f"{last} is no such archive: {cause}")
    return None


def _explain_status(
    status: int | None, cause: BaseException, uri: str, doing: str
) -> Trouble | None:
    """What the HTTP status of an answer means."""
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return _denied(f"HTTP {status}", uri, doing)
    if status is None and type(cause) is OSError and str(cause).startswith("Forbidden: "):  # gcsfs
        return _denied(" ".join(str(cause).split()), uri, doing)
    if status in (None, HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return None
    reason = getattr(cause, "message", "") or str(cause)  # aiohttp's text repeats the address
    if status == HTTPStatus.INSUFFICIENT_STORAGE:
        text = f"cannot be {doing}: the storage is full (HTTP {status}); free some of it"
        return Trouble(ErrorCode.DISK_FULL, text)
    if status in BUSY or _code_of(cause) in TEMPORARY_CODES:
        text = f"the server answered HTTP {status}: {reason}; run again, with less at once"
        return Trouble(ErrorCode.STORAGE_BUSY, text, temporary=True)
    return Trouble(ErrorCode.STORAGE, f"the server answered HTTP {status}: {reason}")


def _explain_number(cause: BaseException, uri: str, doing: str) -> Trouble | None:
    """What the number of an error of the file system means."""
    number = _number(cause)
    if number is None:
        return None
    why = os.strerror(number)
    if number in FULL:
        return _full(number, why, cause, uri, doing)
    if number in (errno.EACCES, errno.EPERM):
        return _denied(str(cause), uri, doing)
    if number in (errno.ENOTDIR, errno.EISDIR) and doing == "written":
        return Trouble(ErrorCode.STORAGE, f"cannot be written: {_in_the_way(split(uri)[1])}")
    if number == errno.EROFS:
        text = f"may not be {doing}: the file system is mounted read-only; take another folder"
        return Trouble(ErrorCode.STORAGE_DENIED, text)
    if number in AWAY:
        text = f"cannot be reached: {why}; check that its file system is mounted"
        return Trouble(ErrorCode.STORAGE_UNREACHABLE, text, temporary=True)
    if number in (errno.EMFILE, errno.ENFILE):
        text = f"cannot be {doing}: too many files are open; raise the limit (`ulimit -n`)"
        return Trouble(ErrorCode.STORAGE, text, temporary=True)
    if number in (errno.ENAMETOOLONG, errno.ELOOP):
        code = ErrorCode.BAD_URI if doing == "read" else ErrorCode.STORAGE
        what = "follows links in a circle" if number == errno.ELOOP else "has a name that is longer"
        hint = "" if number == errno.ELOOP else " than its file system takes; shorten it"
        return Trouble(code, f"{what}{hint}")
    if number in (errno.EIO, errno.ESTALE):
        text = f"cannot be {doing}: {why}; check the disk, or the server that it is mounted from"
        return Trouble(ErrorCode.STORAGE, text, temporary=True)
    return None


def _in_the_way(path: str) -> str:
    """What keeps a file from being written at a path."""
    file = next((above for above in Path(path).parents if above.is_file()), None)
    return f"{file} is a file; expected a folder" if file else "is a folder; expected a file"


def _full(number: int, why: str, cause: BaseException, uri: str, doing: str) -> Trouble:
    """A file for which there is no room; the text names the folder."""
    place = split(uri)[1].rpartition("/")[0] if is_local(uri) else "a folder of this machine"
    if isinstance(cause, OSError) and isinstance(cause.filename, str):
        place = os.path.dirname(cause.filename) or place
    if number == errno.EFBIG:
        text = f"{why} in {place}: raise the limit (`ulimit -f`) or take another file system"
    elif number == errno.EDQUOT:
        text = f"your quota of {place} is used up: free some of it, or have it raised"
    else:
        text = f"no space is left in {place}: free some, or take a folder on another disk"
    return Trouble(ErrorCode.DISK_FULL, f"cannot be {doing}: {text}; then run again")


def _denied(why: str, uri: str, doing: str) -> Trouble:
    hint = "" if is_local(uri) else "; check the credentials and what they allow"
    return Trouble(ErrorCode.STORAGE_DENIED, f"may not be {doing} ({why}){hint}")


def _kinds(cause: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(cause).__mro__}


def _number(cause: BaseException) -> int | None:
    return cause.errno if isinstance(cause, OSError) else None


def _answered(cause: BaseException) -> bool:
    """Whether the number is one that s3fs gave to an answer, whose status says more."""
    return any(http_status(each) is not None for each in causes_of(cause))


def _code_of(cause: BaseException) -> str:
    """The code in an answer of S3."""
    answer = getattr(cause, "response", None)
    return str(answer.get("Error", {}).get("Code", "")) if isinstance(answer, dict) else ""


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
        fs, path = split(uri)
        return bool(fs.isdir(path))
    return False
