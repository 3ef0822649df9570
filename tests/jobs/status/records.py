"""Records and runs that the tests of `jobs.status` make up."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from jobs.status.record import NAME, Status
from pipeline.storage import Folder


def at(seconds: float) -> str:
    """So many seconds from now, as records have it."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def a_status(**values: Any) -> Status:
    """A run at work, by a clock that agrees with this one."""
    known: dict[str, Any] = {
        "run": "20261128T100000.000000",
        "host": "node-3",
        "pid": 17,
        "user": "ann",
        "started_at": at(-600),
        "updated_at": at(-4),
        "seconds": 596.0,
        "state": "running",
        "phase": "editing",
    }
    return Status(**{**known, **values})


def status_in(output: Folder, name: str = NAME) -> Status:
    status = Status.parse(output.read(name))
    assert status is not None
    return status


def until(holds: Callable[[], Any], seconds: float = 30) -> None:
    """Wait until something holds; what is not there yet does not."""
    end = time.monotonic() + seconds
    while True:
        try:
            if holds():
                return
        except (FileNotFoundError, IndexError):
            pass
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.01)
