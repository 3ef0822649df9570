"""Ray's own client of its job API, with deadlines, our token, and errors in words."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests

from cluster import quiet  # noqa: F401 - before Ray, which reads it when it is imported
from cluster.job import CannotRun
from cluster.submission.address import VARIABLES
from cluster.submission.head import ANSWER_S, CONNECT_S, Head

from ray.job_submission import JobSubmissionClient  # isort: skip

UPLOAD_S = 600.0
"""What sending a package may take between two signs of the head."""
LOGGERS = ("job.sdk", "dashboard_sdk")


class Client(JobSubmissionClient):
    """Asks a head that was reached before: `head.reach`."""

    def __init__(self, head: Head) -> None:
        for name in LOGGERS:
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.CRITICAL)
        self.head = head
        with _only(head.address):
            super().__init__(head.address, headers=head.token.headers())

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        read_s = UPLOAD_S if method == "PUT" else ANSWER_S
        return super()._do_request(method, endpoint, timeout=(CONNECT_S, read_s), **options)

    def upload(self, path: str) -> str:
        """Send a zip file, unless the cluster has its bytes already; returns its URI there."""
        return str(self._upload_package_if_needed(path, include_gitignore=False, is_file=True))


@contextmanager
def asking(head: Head, job_id: str = "") -> Iterator[Client]:
    """The client of a head; what goes wrong is said in words.

    Args:
        job_id: what is asked about, for the message.

    Raises:
        CannotRun: the head is gone, refuses, or has no such job.
    """
    try:
        yield Client(head)
    except requests.RequestException as error:
        why = "gives no answer" if isinstance(error, requests.Timeout) else "is gone"
        raise CannotRun(
            f"the cluster at {head.address} {why}. Look at `ray status` on the head; a job that "
            "was submitted goes on as long as its head lives"
        ) from error
    except (RuntimeError, ValueError, ConnectionError) as error:  # as Ray raises them
        if "does not exist" in str(error) and job_id:
            raise CannotRun(
                f"the cluster at {head.address} has no job {job_id!r}: check the id, which "
                "`retake submit` prints first and `ray job list` lists. A head that was started "
                "again knows no jobs from before; the job's output folder does"
            ) from error
        text = " ".join(str(error).split())[:400]
        raise CannotRun(f"the cluster at {head.address} refuses: {text}") from error


@contextmanager
def _only(address: str) -> Iterator[None]:
    """These variables come before an address that is given, by Ray's own rule."""
    before = {name: os.environ.pop(name, None) for name in VARIABLES}
    os.environ[VARIABLES[0]] = address
    try:
        yield
    finally:
        del os.environ[VARIABLES[0]]
        os.environ.update({name: value for name, value in before.items() if value is not None})
