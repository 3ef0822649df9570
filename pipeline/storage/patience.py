"""What goes wrong for a while is tried again, for so long and no longer.

Each operation of this package is tried again while its trouble is temporary, with pauses that
grow. Where a person waits, or a caller has patience of its own, that is for some seconds; a rank,
whose work of minutes would be lost, waits for two minutes and reports that it waits.

A full disk is waited for by ranks only: other ranks give up temporary files, and somebody may make
room. Where a person waits it is reported at once, since nothing but that person makes room.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from itertools import count
from typing import TypeVar

from pipeline.errors import RowError, StorageFailed, causes_of
from pipeline.redaction import redacted
from pipeline.storage import seconds
from pipeline.storage.trouble import explain, is_definite, is_full, is_of_storage, is_temporary

T = TypeVar("T")

PATIENCE_S = 15.0
RANK_PATIENCE_S = 120.0
"""Seconds from the first failure on; RETAKE_STORAGE_PATIENCE_S takes the place of both."""
PAUSES_S = (0.1, 10.0)
"""The first pause, about, and the longest."""

_chance = random.Random()
_patience_s = PATIENCE_S
_waits_for_room = False
_on_wait: Callable[[str], None] = lambda _: None  # noqa: E731


def wait_long(on_wait: Callable[[str], None]) -> None:
    """Be as patient as a rank is, in all of this process.

    Args:
        on_wait: is called before each pause with what it waits for, from any thread.
    """
    global _patience_s, _waits_for_room, _on_wait
    _patience_s, _waits_for_room, _on_wait = RANK_PATIENCE_S, True, on_wait


def patience_s() -> float:
    """How long an operation is tried again, in seconds."""
    return seconds.patience_s(_patience_s)


def patiently(
    action: Callable[[], T],
    location: str,
    doing: str = "read",
    on_wait: Callable[[], None] = lambda: None,
    within_s: float | None = None,
) -> T:
    """What `action` returns; it is called again while its failures are temporary.

    Args:
        action: may be called several times; does all of its work anew.
        location: the file or folder, for the message.
        doing: "read" or "written".
        on_wait: called before each pause.
        within_s: seconds from the first failure on; those of `patience_s` by default.

    Raises:
        FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError: this is so.
        RowError: as `action` raises it; where that was for a full disk, it has been tried long
            enough.
        StorageFailed: any other failure of a storage. It has been tried long enough.
    """
    first: float | None = None
    before = sys.exception()
    most_s = patience_s() if within_s is None else within_s
    for tries in count():
        try:
            return action()
        except StorageFailed:  # it has been tried long enough
            raise
        except Exception as error:  # each storage has its own kinds of failure
            _cut_off(error, before)
            full = is_full(error)
            if not full and (_is_known(error, doing) or not is_of_storage(error)):
                raise
            now = time.monotonic()
            first = now if first is None else first
            waits = _waits_for_room if full else is_temporary(error)
            if not waits or now - first >= most_s:
                if isinstance(error, RowError):
                    raise
                raise StorageFailed(location, explain(error, location, doing)) from error
            what = f"{location}, which could not be {doing}: {_short(error)}"
            _on_wait(redacted(f"the wait for {what}"))
            on_wait()
            time.sleep(_pause_s(tries, first + most_s - now))
    raise AssertionError


def _cut_off(error: BaseException, before: BaseException | None) -> None:
    """What the caller was handling already is no cause of an error, though Python notes it so."""
    for cause in causes_of(error) if before else ():
        if cause.__context__ is before:
            cause.__context__ = None


def _is_known(error: Exception, doing: str) -> bool:
    """Whether the same would be found again, and says enough itself."""
    return isinstance(error, RowError) or (is_definite(error) and not _is_lost(error, doing))


def _is_lost(error: Exception, doing: str) -> bool:
    """Whether a file is written where no file can be: there is no bucket, or a file above it."""
    return doing == "written" and not isinstance(error, FileExistsError)


def _pause_s(tries: int, left: float) -> float:
    """Pauses differ by chance: who failed together shall not come together again."""
    shortest, longest = PAUSES_S
    return min(left, longest, shortest * 2.0 ** min(tries, 20)) * _chance.uniform(0.5, 1)


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
