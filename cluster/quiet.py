"""Keeps Ray's own messages from drowning the job's; a user's own setting of any of these stands.

Importing this module must come before `import ray`.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from pipeline.redaction import redacted

os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# A thread of Ray Data that outlives the connection would connect again, to any cluster it finds.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# Actors of the graph wait for their rank processes, so more of them than cores is as it should be.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started on node")


@contextmanager
def held_back() -> Iterator[None]:
    """Keeps what native code writes to standard error out of sight.

    What stops a run is raised as well, with the way out, so nothing is lost with it.
    """
    sys.stderr.flush()
    with open(os.devnull, "wb") as nowhere:
        real = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)


@contextmanager
def into_a_file() -> Iterator[None]:
    """Keeps what Ray pushes to its driver out of the terminal, in `retake-PID.log` of its logs.

    It tells of each worker that dies and each task that it runs again. A run says itself, in its
    notes and results, what came of that.
    """
    from ray._private import worker

    as_it_was = worker.print_to_stdstream
    worker.print_to_stdstream = _keep
    try:
        yield
    finally:
        worker.print_to_stdstream = as_it_was


def _keep(data: dict[str, Any], ignore_prefix: bool = False) -> None:
    from ray._private import worker

    with suppress(OSError, AttributeError):  # Ray has just ended, or its disk is full
        folder = worker._global_node.get_logs_dir_path()
        with open(f"{folder}/retake-{os.getpid()}.log", "a") as file:
            for line in data["lines"]:
                file.write(f"{datetime.now(UTC).isoformat()} {redacted(line)}\n")
