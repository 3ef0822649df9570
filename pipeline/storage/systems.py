"""The file system of a location, with deadlines: a path or URI taken apart as fsspec wants it."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import unquote

import fsspec

from pipeline.locations import beside, is_local, is_web, links, protocol

CONNECT_S = 10.0
TIMEOUT_S = 30.0
"""Seconds without a byte after which a connection counts as broken; RETAKE_STORAGE_TIMEOUT_S."""
ATTEMPTS = 2
"""Of the client of S3 for one request; what outlasts them is left to `patiently`."""


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
    without an end.
    """
    read = float(os.environ.get("RETAKE_STORAGE_TIMEOUT_S") or TIMEOUT_S)
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
