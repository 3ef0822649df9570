"""Which nodes the groups of a job's pools go to, so that Ray finds room for all of them.

The actors of a pool are all created with the same options and at the same time as those of other
pools, and Ray spreads them: small ones can take the room that a large one needs, which then waits
for ever. An order of nodes for each pool, which Ray's `fallback_strategy` follows, prevents it: a
pool takes the next node once the ones before are full. So every node but a pool's last one is
filled by it, and the last one gets just the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """Groups of one size.

    Args:
        size: GPUs, all of one node, that each takes.
        groups: how many.
    """

    size: int
    groups: int


def pack(free: Sequence[int], kinds: Sequence[Kind]) -> list[dict[int, int]] | None:
    """How many groups of each kind go to which node, in the order in which a kind fills nodes.

    The largest groups are placed first. A kind shares no node with larger ones but its last: on
    another it could take their room.

    Args:
        free: GPUs of each node.
        kinds: of different sizes.

    Returns:
        None where there is no room.
    """
    left, touched = list(free), set[int]()
    places: dict[int, dict[int, int]] = {}
    for number in sorted(range(len(kinds)), key=lambda one: -kinds[one].size):
        placed = _place(kinds[number], left, touched)
        if placed is None:
            return None
        places[number] = placed
        touched.update(placed)
        for node, groups in placed.items():
            left[node] -= groups * kinds[number].size
    return [places[number] for number in range(len(kinds))]


def _place(kind: Kind, left: Sequence[int], touched: set[int]) -> dict[int, int] | None:
    """The nodes of one kind, where larger ones have touched some."""
    rest, placed, largest = kind.groups, dict[int, int](), max(left, default=0)
    # Whole nodes first that are left with the fewest GPUs.
    order = sorted(set(range(len(left))) - touched, key=lambda node: left[node] % kind.size)
    whole = (node for node in order if left[node] >= kind.size)
    while rest:
        if rest * kind.size <= largest:
            last = [node for node, gpus in enumerate(left) if gpus >= rest * kind.size]
            if last := [node for node in last if node not in placed]:
                # A node with others on it, or the smallest that is large enough.
                placed[min(last, key=lambda n: (n not in touched, left[n]))] = rest
                return placed
        if (node := next(whole, None)) is None:
            return None
        placed[node] = left[node] // kind.size
        rest -= placed[node]
    return placed


def most(
    free: Sequence[int], size: int, others: Sequence[Kind] = (), at_most: int = 1 << 30
) -> int:
    """The most groups of a size that there is room for beside others; -1 where none for those."""
    room = sum(gpus // size for gpus in free)
    if all(kind.size == size for kind in others):
        return max(-1, min(at_most, room - sum(kind.groups for kind in others)))
    beside = (sum(free) - sum(kind.groups * kind.size for kind in others)) // size
    for groups in range(min(at_most, room, beside), -1, -1):
        if pack(free, merged([Kind(size, groups), *others])) is not None:
            return groups
    return -1


def merged(kinds: Sequence[Kind]) -> list[Kind]:
    """The same groups, those of one size together: they may stand in for each other."""
    sizes = dict.fromkeys(kind.size for kind in kinds if kind.groups and kind.size)
    return [Kind(size, sum(k.groups for k in kinds if k.size == size)) for size in sizes]
