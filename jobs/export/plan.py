"""Which side of the split a source is on, the order of pairs, and which pairs make a shard.

All of it follows from the rows alone: the same rows give the same shards on every machine, and rows
that are added leave the sides and the order of the others as they are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.export.formats import SPLITS
from pipeline.locations import normalised

PAIRS_PER_SHARD = 10_000
"""At most, however small their files are: a shard's ids are one file of its commit."""
SLUG = 32
"""Characters of an id in a key, before the digits that tell keys apart."""


@dataclass(frozen=True)
class Planned:
    """A shard that is to be written: some of the pairs of one split, which follow each other.

    Args:
        start, stop: places of the pairs in the order, start <= place < stop.
        bytes: of their files.
    """

    split: str
    start: int
    stop: int
    bytes: int


def place_of(source: str) -> float:
    """Where a source stands among all that may be, 0 <= place < 1; by a hash, so evenly.

    Spellings of one location give one place.

    Args:
        source: the video as the manifest has it.
    """
    digest = hashlib.blake2b(normalised(source).encode(errors="replace"), digest_size=6).digest()
    return int.from_bytes(digest) / 2**48


def split_of(place: float, validation: float) -> str:
    """The side of a source. With a larger part for validation, what was there stays there."""
    return SPLITS[place < validation]


def key_of(video_id: str, edit_id: str) -> str:
    """The name of a pair's files: readable, the same for ever, and of no other pair.

    webdataset takes what stands before the first dot for the key, so there is none.
    """
    digest = hashlib.blake2b(f"{video_id}\0{edit_id}".encode(errors="replace"), digest_size=6)
    return f"{slug(video_id)}-{slug(edit_id)}-{digest.hexdigest()}"


def slug(name: str) -> str:
    """What of a name is safe in any file's: letters of ASCII, digits and `_`."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name)[:SLUG].strip("_") or "x"


def plan_shards(
    sizes: Sequence[int] | np.ndarray,
    splits: Sequence[str] | np.ndarray,
    most_bytes: float,
    most_pairs: int = PAIRS_PER_SHARD,
) -> list[Planned]:
    """The shards of some pairs, in order: each as full as its size allows.

    Args:
        sizes: bytes of each pair's files, in the order of the pairs: those of one split follow
            each other.
        splits: of each pair.
        most_bytes: of a shard, but for one with a single pair.
        most_pairs: of a shard.
    """
    shards: list[Planned] = []
    start, held = 0, 0
    for place, (size, split) in enumerate(zip(sizes, splits, strict=True)):
        full = held + int(size) > most_bytes or place - start >= most_pairs
        if place > start and (full or split != splits[start]):
            shards.append(Planned(str(splits[start]), start, place, held))
            start, held = place, 0
        held += int(size)
    if len(sizes):
        shards.append(Planned(str(splits[start]), start, len(sizes), held))
    return shards
