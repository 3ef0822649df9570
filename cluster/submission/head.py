"""Reaches the head of a cluster, or says in seconds why it cannot: no network, token or version.

Nothing of Ray is imported: what is wrong is known before Ray's own import would have ended.
"""

from __future__ import annotations

import re
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import urlsplit

import requests

from cluster.job import CannotRun
from cluster.submission.address import GCS_PORT, PORT, dashboard_address
from cluster.submission.token import Token, find_token, missing, refused

CONNECT_S = 5.0
"""A head that takes no connection in this time is not there."""
ANSWER_S = 15.0
"""What a head may take to answer a question of a few bytes."""


NODES_S = 10.0
"""A head that was just started knows its own node in this time."""


@dataclass(frozen=True)
class Head:
    """A cluster that answers, takes our token, and has our version of Ray.

    Args:
        address: of its dashboard, `http://host:port`.
        ray: its version.
    """

    address: str
    token: Token
    ray: str

    def is_this_machine(self) -> bool:
        """Whether all of the cluster is this machine, so that it sees the files that are here.

        A port of this machine may be forwarded to a head elsewhere, so the address tells nothing.
        """
        until = time.monotonic() + NODES_S
        while not (nodes := self._nodes()) and time.monotonic() < until:
            time.sleep(0.2)
        addresses, names = nodes or ([], [])
        ours = bool(addresses) and all(map(_is_ours, addresses))
        return ours and set(names) <= {socket.gethostname()}

    def _nodes(self) -> tuple[list[str], list[str]] | None:
        """The addresses of the nodes, and the names that are known of them, from some seconds
        after their start on. None where the head does not know yet."""
        with suppress(Exception):  # it only helps a check
            listed = _ask(self.address, "/api/v0/nodes", self.token).json()["data"]["result"]
            alive = [str(node["node_ip"]) for node in listed["result"] if node["state"] == "ALIVE"]
            named = _ask(self.address, "/nodes?view=hostNameList", self.token).json()["data"]
            return (alive, list(map(str, named["hostNameList"]))) if alive else None
        return None


def reach(address: str | None = None, token_file: str | None = None) -> Head:
    """The head of a cluster.

    Args:
        address: as `dashboard_address` takes it.
        token_file: as `find_token` takes it.

    Raises:
        CannotRun: the address is none, nothing answers there, the token is missing or wrong, or
            the head has another version of Ray.
    """
    url, token = dashboard_address(address), find_token(token_file)
    _connect(url)
    answer = _ask(url, "/api/version", token)
    if answer.status_code == 401:
        raise CannotRun(
            missing(f"the cluster at {url}")
            if token.value is None
            else f"the cluster at {url} did not see the token of {token.source}: something between "
            "takes it out of requests. Reach the head without a proxy, as by `ssh -L`"
        )
    if answer.status_code == 403:
        raise CannotRun(
            refused(
                f"the cluster at {url}", token, "RAY_AUTH_TOKEN, or into a file for --token-file"
            )
        )
    theirs = _version_in(answer)
    if theirs is None:
        raise CannotRun(
            f"{url} answers (HTTP {answer.status_code}), but not as the dashboard of a Ray "
            f"cluster. Check host and port: the dashboard's is {PORT} by default, not {GCS_PORT}"
        )
    _compare(url, theirs)
    return Head(url, token, theirs)


def _connect(url: str) -> None:
    parts = urlsplit(url)
    host, port = str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError as error:
        why = f"no answer in {CONNECT_S:g} s" if isinstance(error, TimeoutError) else _text(error)
        raise CannotRun(
            f"nothing takes jobs at {url}: {why}. Is the head up, and was it started with "
            "--dashboard-host 0.0.0.0? Where only its own machine or network reaches it, forward "
            f"the port: `ssh -L {PORT}:localhost:{port} HEAD`, then --address "
            f"http://127.0.0.1:{PORT}"
        ) from error


def _ask(url: str, path: str, token: Token) -> requests.Response:
    try:
        return requests.get(
            url + path,
            headers=token.headers(),
            timeout=(CONNECT_S, ANSWER_S),
            allow_redirects=False,
        )
    except requests.exceptions.SSLError as error:
        raise CannotRun(f"{url}: its certificate is not trusted: {_text(error)}") from error
    except requests.Timeout as error:
        raise CannotRun(
            f"{url} takes connections, and gives no answer in {ANSWER_S:g} s: the head is too "
            "busy, or no dashboard of Ray. Look at `ray status` there"
        ) from error
    except requests.RequestException as error:
        raise CannotRun(
            f"{url} takes connections, but does not speak HTTP: it is no dashboard of Ray. Its "
            f"port is {PORT} by default; {GCS_PORT} is where nodes join"
        ) from error


def _version_in(answer: requests.Response) -> str | None:
    try:
        found: Any = answer.json()["ray_version"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(found) if answer.ok else None


def _compare(url: str, theirs: str) -> None:
    """Refuse another version of Ray: jobs, packages and answers differ between them."""
    try:
        ours = version("ray")
    except PackageNotFoundError:
        raise CannotRun("Ray is not installed here: `pip install 'ray[default]'`") from None
    if _three(theirs) != _three(ours):
        raise CannotRun(
            f"the cluster at {url} has Ray {theirs}, and this machine {ours}. Have the same on "
            f"both: `pip install 'ray[data,default]=={theirs}'` here, or Ray {ours} on all nodes"
        )


def _is_ours(address: str) -> bool:
    """Whether an IP address is one of this machine: only then a socket can have it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.bind((address, 0))
    except OSError:
        return False
    return True


def _three(text: str) -> tuple[str, ...]:
    """Major, minor and patch."""
    return tuple(re.split(r"[.+-]|(?=rc|dev)", text)[:3])


def _text(error: Exception) -> str:
    known = isinstance(error, OSError) and error.strerror
    return str(known or error).strip().rstrip(".").removeprefix("[Errno -2] ").lower()
