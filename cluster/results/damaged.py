"""Damaged files of the results: named, set aside by a run, left out by everything else.

What such a file held counts as not done, so the next run makes those edits again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import Unreadable
from pipeline.redaction import say
from pipeline.storage import Folder

ASIDE = "results/.damaged"


@dataclass(frozen=True)
class Damaged:
    """A file of the results that is left out.

    Args:
        name: of the file, relative to the output folder.
        why: what is wrong with it: "<file>: <why>".
    """

    output: Folder
    name: str
    why: str

    @classmethod
    def by(cls, output: Folder, name: str, size: int | None, error: Exception) -> Damaged:
        """What an exception from reading a file says of it."""
        if size == 0:
            return cls(output, name, "is empty")
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        return cls(output, name, f"cannot be read: {reason}")

    def __str__(self) -> str:
        return f"results {self.output.uri}/{self.name}: {self.why}"


class PartDamaged(Unreadable):
    """A file of the results is damaged."""

    def __init__(self, damaged: Damaged) -> None:
        super().__init__(f"{damaged}. Restore the file; the next run sets it aside otherwise")
        self.damaged = damaged


def warn(damaged: Damaged) -> None:
    """Say that a file is left out; for commands that only read."""
    say(
        f"warning: {damaged}. It is left out here; the next `retake run` sets it aside and makes "
        "again what it lists",
        problem=True,
    )


def setter_aside(note: Callable[[str], None]) -> Callable[[Damaged], None]:
    """What a run does with damaged files: each is moved to `results/.damaged/`, and `note` says so.

    Only for the holder of the output folder's lease.
    """

    def set_aside(damaged: Damaged) -> None:
        note(f"{damaged}. It was moved to {_move(damaged)}; the edits that it lists are made again")

    return set_aside


def _move(damaged: Damaged) -> str:
    """Copy a file to `ASIDE`, whole, before it is removed.

    Returns:
        Where it is now.
    """
    output, name = damaged.output, damaged.name
    data = output.read(name)
    digest = hashlib.sha256(data).hexdigest()[:8]  # two files of one name may be damaged
    stem = name.rsplit("/", 1)[-1].removesuffix(".parquet")
    place = f"{ASIDE}/{stem}-{digest}.parquet"
    output.write(place, data)
    output.remove(name)
    return place
