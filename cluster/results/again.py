"""Results read while a run writes them: read again where files went or were found damaged."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

from cluster.results.damaged import PartDamaged, warn
from cluster.results.parts import PartGone

T = TypeVar("T")
READINGS = 10


def whole_reading(read: Callable[[Collection[str]], T]) -> T:
    """What a reading of the results gives that came to its end.

    Args:
        read: gets the names of the damaged files that it has to leave out; it may be called again.

    Raises:
        PartGone: the files change too fast.
        Unreadable: storage does not give a file.
    """
    damaged: list[str] = []
    for _ in range(READINGS):
        try:
            return read(damaged)
        except PartGone:
            continue  # a run has put results together meanwhile
        except PartDamaged as error:
            warn(error.damaged)
            damaged.append(error.damaged.name)
    return read(damaged)
