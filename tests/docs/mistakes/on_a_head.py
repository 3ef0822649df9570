"""Mistakes with `retake submit`, for docs/messages.md: what was done, and how to do it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

from cluster import connection
from cluster.job import CannotRun
from tests.cluster.submission.small_head import Answer, asks_for, small_head, version_of
from tests.cluster.submission.test_entry import requires
from tests.cluster.submission.test_entry import run as run_entry
from tests.docs.mistakes.provoke import Mistakes, retake

TOKEN = "0123456789abcdef"
RAY = version("ray")


def submit(*options: str, **variables: str) -> str:
    """What `retake submit` says, on a machine whose environment has no token but these."""
    with patch.dict(os.environ, {"HOME": str(Path.cwd()), **variables}):
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS"):
            if name not in variables:
                os.environ.pop(name, None)
        return retake("submit", "job.yaml", *options)


def to(answer: Callable[[Mapping[str, str]], Answer], *options: str, **variables: str) -> str:
    """What `retake submit` says to a head that answers so."""
    with small_head(answer) as address:
        said = submit("--address", address, *options, **variables)
        return said.replace(address, "http://head:8265")


def to_another_machine(*options: str) -> str:
    """What it says to a head that is not here, for a job of local files."""
    with patch("cluster.submission.head.Head.is_this_machine", return_value=False):
        return to(version_of(RAY), *options)


def joins(**variables: str) -> str:
    """What a run says whose cluster refuses it, as Ray's error tells: in a cause alone.

    `test_a_run_that_joins_a_cluster_says_what_is_wrong_with_its_token` does it with a real head.
    """
    refused = ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")
    refused.__cause__ = RuntimeError("ray.exceptions.AuthenticationError: InvalidAuthToken")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with (
        patch.dict(os.environ, {**kept, "HOME": str(Path.cwd()), **variables}, clear=True),
        patch.object(connection, "_reach"),
        patch.object(connection, "_init", side_effect=refused),
    ):
        try:
            connection._join("10.0.0.1:6379")
        except CannotRun as error:
            return f"error: {error}"
    raise AssertionError("it joined")


def with_token_file(text: str) -> str:
    Path("token").write_text(text)
    return submit("--address", "head", "--token-file", "token")


def without_a_package() -> str:
    folder = Path("packages").absolute()
    folder.mkdir()
    requires(folder, "no-such-package>=2")
    return run_entry(folder, "run", "job.yaml")[1]


SUBMISSION: Mistakes = {
    "no address": submit,
    "`--address head:6379`": lambda: submit("--address", "head:6379"),
    "`--address ray://head:10001`": lambda: submit("--address", "ray://head:10001"),
    "`--address auto`": lambda: submit("--address", "auto"),
    "a head that is not up": lambda: submit("--address", "127.0.0.1:1"),
    "a web server in place of a head": lambda: to(lambda headers: (200, "<html>")),
    "a cluster with another Ray": lambda: to(version_of("2.59.0")),
    "no token": lambda: to(asks_for(TOKEN, RAY)),
    "a wrong token": lambda: to(asks_for(TOKEN, RAY), RAY_AUTH_TOKEN="another-token-of-ours"),
    "a file for the token that is not there": lambda: submit(
        "--address", "head", "--token-file", "none"
    ),
    "an empty file for the token": lambda: with_token_file(""),
    "a job of local files, to a cluster elsewhere": to_another_machine,
    "`--env AWS_PROFILE`, which is not set": lambda: submit("--env", "AWS_PROFILE"),
    "`--env HF_TOKEN=hf_abc`": lambda: submit("--env", "HF_TOKEN=hf_abc"),
    "`--image` and `--bring-packages`": lambda: submit(
        "--image", "registry/retake:1", "--bring-packages"
    ),
    "a head without a package": without_a_package,
}
