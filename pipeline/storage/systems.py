"""The file system of a location, with deadlines: a path or URI taken apart as fsspec wants it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import fsspec
from fsspec.asyn import sync

from pipeline.locations import beside, is_local, is_web, links, protocol
from pipeline.storage.seconds import timeout_s

CONNECT_S = 10.0
ATTEMPTS = 2
"""Of the client of S3 for one request; what outlasts them is left to `patiently`."""
BYTES_IN_TIME = 16 << 20
"""A write of more bytes has the time of a connection without a byte once more for each so many."""
PART_BYTES = 256 << 20
"""S3 takes files of up to two such parts by one request. Of a write in parts, a process that is
killed leaves those that arrived, which no listing shows and which are paid for."""
UPLOAD_PART_BYTES = 64 << 20
"""Of a file that is too large for memory; two are on their way at once."""


def split(uri: str) -> tuple[Any, str]:
    """The file system of a path or URI, and the path on it, without a slash at its end."""
    if is_local(uri) and len(links(uri)) == 1:
        fs = fsspec.filesystem("file")
        return fs, fs._strip_protocol(_local_path(uri)).rstrip("/")
    options = {name: _options(name) for link in links(uri) if (name := protocol(link) or "")}
    options = {name: own for name, own in options.items() if own}
    if len(links(uri)) == 1 and "::" in uri:  # in a name; fsspec would take it for a chain
        kind = fsspec.get_filesystem_class(protocol(uri))
        own = {**kind._get_kwargs_from_urls(uri), **options.get(protocol(uri) or "", {})}
        fs, path = kind(**own), kind._strip_protocol(uri)
    else:
        fs, path = fsspec.core.url_to_fs(uri, **options)
    if "s3" in protocols(fs):
        # Its own tries, of which each has all of the client's; they would multiply.
        fs.retries = 1
    return fs, path if is_web(uri) and len(links(uri)) == 1 else path.rstrip("/")


def _options(name: str) -> dict[str, Any]:
    """What the file system of a protocol is made with: deadlines for each connection.

    What fsspec's own configuration says is kept. Without these, S3 tries 25 times to read from a
    server that hangs, HTTP waits for 5 minutes and breaks off whatever takes longer, and GCS waits
    without an end. They begin when a request is sent; `write_object` has the deadline of that.

    Other protocols (Azure, SFTP, HDFS) have only the deadlines of their own clients.
    """
    read = timeout_s()
    own = fsspec.config.conf.get(name, {})
    if name in ("s3", "s3a"):
        config: dict[str, Any] = {"connect_timeout": min(CONNECT_S, read), "read_timeout": read}
        if not os.environ.get("AWS_MAX_ATTEMPTS"):
            config["retries"] = {"total_max_attempts": ATTEMPTS, "mode": "standard"}
        return {"config_kwargs": {**config, **own.get("config_kwargs", {})}}
    if name in ("http", "https", "gs", "gcs"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=min(CONNECT_S, read), sock_read=read)
        if name in ("gs", "gcs"):
            return {"requests_timeout": own.get("requests_timeout", timeout)}
        return {"client_kwargs": {"timeout": timeout, **own.get("client_kwargs", {})}}
    return {}


def write_object(fs: Any, path: str, data: bytes, **options: Any) -> None:
    """Write a file to a storage that is not local, within a deadline.

    The clients of S3, GCS and HTTP wait without an end for a server that takes no more of what is
    sent, or that does not say whether it will (S3's client sends `Expect: 100-continue`). What is
    over its deadline is cancelled, so that it cannot arrive later than what is written next.

    Storages whose clients are not asynchronous have the deadlines of those only.

    Args:
        options: as the file system's `pipe_file` takes them.

    Raises:
        TimeoutError: it took too long, which may pass.
    """
    if "s3" in protocols(fs):
        options = {"chunksize": PART_BYTES, **options}
    if not _is_async(fs):
        fs.pipe_file(path, data, **options)
        return
    _in_time(fs, lambda: fs._pipe_file(path, data, **options), len(data))


def upload_object(fs: Any, local: str, path: str, **options: Any) -> None:
    """Write a file of this machine to a storage that is not local; it may be larger than memory.

    Deadlines and errors are those of `write_object`. S3 takes it in parts, of which some are in
    memory; those of a process that is killed stay, which no listing shows and which are paid for.

    Args:
        local: the path of the file.
    """
    if "s3" in protocols(fs):
        options = {"chunksize": UPLOAD_PART_BYTES, "max_concurrency": 2, **options}
    if not _is_async(fs):
        fs.put_file(local, path, **options)
        return
    _in_time(fs, lambda: fs._put_file(local, path, **options), os.path.getsize(local))


def _is_async(fs: Any) -> bool:
    return bool(fs.async_impl and getattr(fs, "fs", fs).async_impl)  # a chain's last link counts


def _in_time(fs: Any, action: Callable[[], Awaitable[Any]], size: int) -> None:
    """Run a write of so many bytes, and cancel it when its deadline is over."""
    deadline_s = write_deadline_s(size)
    over = False

    async def write() -> None:
        nonlocal over
        try:
            async with asyncio.timeout(deadline_s) as deadline:
                await action()
        finally:
            over = deadline.expired()

    try:
        sync(fs.loop, write)
    except TimeoutError as error:
        if not over:  # the client's own, such as for a connection that is not made
            raise
        raise TimeoutError(f"{size} bytes were not taken in {deadline_s:.0f} s") from error


def write_deadline_s(size: int) -> float:
    """The longest that the write of a file of so many bytes may take, in seconds."""
    read = timeout_s()
    return min(CONNECT_S, read) + read * (1 + size / BYTES_IN_TIME)


def protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


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
    return path if "file" in protocols(fs) else str(fs.unstrip_protocol(path))


def neighbour(uri: str, path: str) -> str:
    """The URI of another path on the file system of `uri`, which may be a chain of them."""
    return beside(uri, path) if len(links(uri)) > 1 else join(split(uri)[0], path)
