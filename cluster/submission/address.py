"""The address of a cluster's dashboard, which takes jobs, out of what a user gives."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from cluster.job import CannotRun

PORT = 8265
"""Of the dashboard, unless the head was started with another."""
GCS_PORT = 6379
VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
EXPECTED = f"expected the address of the cluster's dashboard, as http://HEAD:{PORT}"


def dashboard_address(given: str | None) -> str:
    """The address of the dashboard, `http://host:port`.

    Args:
        given: with `--address`; by default what RAY_API_SERVER_ADDRESS holds, then RAY_ADDRESS.

    Raises:
        CannotRun: there is none, or it is the address of something else.
    """
    source, address = "--address", (given or "").strip()
    for variable in VARIABLES:
        if not address:
            source, address = variable, os.environ.get(variable, "").strip()
    if not address:
        raise CannotRun(
            f"no cluster is named: give --address http://HEAD:{PORT}, the address of its "
            f"dashboard, or set {VARIABLES[0]}"
        )
    return _checked(address.rstrip("/"), f"{source} {address!r}")


def _checked(address: str, named: str) -> str:
    if address in ("auto", "local"):
        raise CannotRun(f"{named}: {EXPECTED}; on the head itself it is http://127.0.0.1:{PORT}")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", address)
    if scheme and scheme[1].lower() == "ray":
        host = urlsplit(address).hostname or "HEAD"
        raise CannotRun(
            f"{named}: is an address of Ray Client, which takes no jobs; {EXPECTED}. Is it "
            f"http://{host}:{PORT}?"
        )
    if scheme and scheme[1].lower() not in ("http", "https"):
        raise CannotRun(f"{named}: has the unknown protocol {scheme[1]!r}; {EXPECTED}")
    parts, port = _parts(address if scheme else f"http://{address}")
    if parts is None or not parts.hostname:
        raise CannotRun(f"{named}: is no address; {EXPECTED}")
    if parts.username or parts.password:
        raise CannotRun(
            f"{named}: has a name or password, which Ray does not ask for; {EXPECTED}, and a token "
            "in RAY_AUTH_TOKEN or --token-file"
        )
    if parts.query or parts.fragment:
        raise CannotRun(f"{named}: has more after its port; {EXPECTED}")
    if port == GCS_PORT:
        host = parts.hostname
        raise CannotRun(
            f"{named}: port {GCS_PORT} is where nodes join; jobs go to the dashboard, whose port "
            f"is {PORT} by default. Give http://{host}:{PORT}"
        )
    if port is None and parts.scheme == "http" and not parts.path:
        port = PORT
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"


def _parts(address: str):  # type: ignore[no-untyped-def]
    try:
        parts = urlsplit(address)
        return parts, parts.port
    except ValueError:  # a port that is none, brackets that do not close
        return None, None
