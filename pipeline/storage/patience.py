"""What goes wrong for a while is tried again, for so long and no longer.

Each operation of this package is tried again while its trouble is temporary, with pauses that
grow. Where a person waits, or a caller has patience of its own, that is for some seconds; a rank,
whose work of minutes would be lost, waits for two minutes and reports that it waits.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from itertools import count
from typing import TypeVar

from pipeline.errors import RowError, StorageFailed
from pipeline.storage.trouble import explain, is_definite, is_of_storage, is_temporary

T = TypeVar("T")

PATIENCE_S = 15.0
RANK_PATIENCE_S = 120.0
"""Seconds from the first failure on; RETAKE_STORAGE_PATIENCE_S takes the place of both."""
PAUSES_S = (0.1, 10.0)
"""The first pause, about, and the longest."""

_chance = random.Random()
_patience_s = PATIENCE_S
_on_wait: Callable[[str], None] = lambda _: None  # noqa: E731


def wait_long(on_wait: Callable[[str], None]) -> None:
    """Be as patient as a rank is, in all of this process.

    Args:
        on_wait: is called before each pause with what it waits for, from any thread.
    """
    global _patience_s, _on_wait
    _patience_s, _on_wait = RANK_PATIENCE_S, on_wait


def patience_s() -> float:
    """How long an operation is tried again, in seconds."""
    return float(os.environ.get("RETAKE_STORAGE_PATIENCE_S") or _patience_s)


def patiently(
    action: Callable[[], T],
    location: str,
    doing: str = "read",
    on_wait: Callable[[], None] = lambda: None,
) -> T:
    """What `action` returns; it is called again while its failures are temporary.

    Args:
        action: may be called several times; does all of its work anew.
        location: the file or folder, for the message.
        doing: "read" or "written".
        on_wait: called before each pause.

    Raises:
        FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError: this is so.
        StorageFailed: any other failure of a storage. It has been tried long enough.
    """
    first: float | None = None
    for tries in count():
        try:
            return action()
        except (RowError, StorageFailed):  # it has been tried long enough
            raise
        except Exception as error:  # each storage has its own kinds of failure
            known = is_definite(error) and not _is_lost(error, doing)
            if known or not is_of_storage(error):
                raise
            now = time.monotonic()
            first = now if first is None else first
            if not is_temporary(error) or now - first >= patience_s():
                raise StorageFailed(location, explain(error, location, doing)) from error
            _on_wait(f"the wait for {location}, which could not be {doing}: {_short(error)}")
            on_wait()
            time.sleep(_pause_s(tries, first + patience_s() - now))
    raise AssertionError


def _is_lost(error: Exception, doing: str) -> bool:
    """Whether a file is written where no file can be: there is no bucket, or a file above it."""
    return doing == "written" and not isinstance(error, FileExistsError)


def _pause_s(tries: int, left: float) -> float:
    """Pauses differ by chance: who failed together shall not come together again."""
    shortest, longest = PAUSES_S
    return min(left, longest, shortest * 2.0 ** min(tries, 20)) * _chance.uniform(0.5, 1)


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
