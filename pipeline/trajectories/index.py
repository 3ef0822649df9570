"""The index of a stored trajectory: what it holds, where every byte lies, and how to know it is so.

A trajectory is a folder of shards and one `index.json`. An entry (the latent of one level) is cut
into `CHUNKS` equal parts of its flattened values; a chunk of an entry is the unit that has a
checksum. A shard holds a range of levels of a range of chunks, so whoever wrote it, a group of any
other size reads just the chunks that it needs and checks each of them.

The index is written last and is the commit: shards without one are nothing. It carries the
trajectory's key and a digest of itself, so that a stale, foreign or altered index is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.storage import Folder, from_json

FORMAT = 1
INDEX = "index.json"
CHUNKS = 48
MOST_LEVELS = 1001  # an inversion has 1000 steps at most
"""Divisible by every group size up to 8 but 5 and 7, so that a group's slices are equal."""

ITEM_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}


class TrajectoryDamaged(Exception):
    """A stored trajectory is not what its index says; it must be inverted anew."""


@dataclass(frozen=True)
class Shard:
    """One file of a trajectory.

    Args:
        file: its name in the folder.
        levels: the levels first <= level < last that it holds, in that order.
        chunks: the chunks first <= chunk < last of each of them.
        data_offset: the byte at which the first level starts.
        bytes: the size of the file.
        digests: for each level, the digest of each chunk.
    """

    file: str
    levels: tuple[int, int]
    chunks: tuple[int, int]
    data_offset: int
    bytes: int
    digests: tuple[tuple[str, ...], ...]

    def holds(self, level: int) -> bool:
        return self.levels[0] <= level < self.levels[1]

    def digest(self, level: int, chunk: int) -> str:
        return self.digests[level - self.levels[0]][chunk - self.chunks[0]]


@dataclass(frozen=True)
class TrajectoryIndex:
    """All that is known of a stored trajectory.

    Args:
        key: what the trajectory is stored under: a hash of all that determines it.
        shape: [F, C, H, W] of each entry.
        dtype: of the stored values: `fp16`, `bf16` or `fp32`.
        shards: the files; together they hold every chunk of the levels 0..highest.
        timesteps, alphas: of the levels 0..T of the schedule.
        frames, fps: of the clip; 0 where an older version did not write them.
        method: of the inversion.
        checkpoint: the fingerprint of the one that inverted it; empty where it is not known.
        about: the certificate of the inversion, by metric.
    """

    key: str
    shape: tuple[int, int, int, int]
    dtype: str
    shards: tuple[Shard, ...]
    timesteps: tuple[int, ...] = ()
    alphas: tuple[float, ...] = ()
    frames: int = 0
    fps: float = 0.0
    method: str = "pec"
    checkpoint: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> int:
        frames, channels, height, width = self.shape
        return frames * channels * height * width

    @property
    def highest(self) -> int:
        """The highest level up to which every entry is there; -1 for none."""
        level = 0
        while self.chunks_held(level) == CHUNKS:
            level += 1
        return level - 1

    def chunks_held(self, level: int) -> int:
        held = {c for s in self.shards if s.holds(level) for c in range(*s.chunks)}
        return len(held)

    def chunk_start(self, chunk: int) -> int:
        """The first value of a chunk in the flattened entry."""
        return self.values * chunk // CHUNKS

    def byte_range(self, shard: Shard, level: int, first: int, last: int) -> tuple[int, int]:
        """The bytes of a shard that hold the chunks first <= chunk < last of a level."""
        item = ITEM_BYTES[self.dtype]
        start, end = (self.chunk_start(c) for c in shard.chunks)
        row = shard.data_offset + (level - shard.levels[0]) * (end - start) * item
        return (
            row + (self.chunk_start(first) - start) * item,
            row + (self.chunk_start(last) - start) * item,
        )

    def extended(
        self, shards: Iterable[Shard], about: Mapping[str, Any], **known: Any
    ) -> TrajectoryIndex:
        """The same trajectory with more levels, and what is known of it now.

        Args:
            known: other fields, which an older version may have left out.
        """
        return replace(self, shards=(*self.shards, *shards), about=about, **known)

    def to_json(self) -> bytes:
        body = {"format": FORMAT, "chunks": CHUNKS, **asdict(self)}
        text = json.dumps(body, sort_keys=True)
        return json.dumps(
            {"digest": digest(text.encode(), 64), "body": body}, sort_keys=True
        ).encode()


def digest(data: bytes, hex_digits: int = 16) -> str:
    return hashlib.sha256(data).hexdigest()[:hex_digits]


def slice_of(rank: int, ranks: int) -> tuple[int, int]:
    """The chunks first <= chunk < last that a rank writes or reads."""
    return CHUNKS * rank // ranks, CHUNKS * (rank + 1) // ranks


def commit(folder: Folder, index: TrajectoryIndex) -> None:
    """Write the index: from here on the trajectory is there for everyone.

    Two writers of one trajectory name their shards differently; the index that is written last is
    the one that counts, and each index is whole with its own shards.

    Raises:
        ValueError: if the shards do not hold every chunk of every level up to the highest.
    """
    top = max((s.levels[1] for s in index.shards), default=0) - 1
    if index.highest != top or top < 0:
        raise ValueError(
            f"trajectory {index.key}: the shards reach level {top} but are whole only up to "
            f"{index.highest}"
        )
    folder.write(INDEX, index.to_json())


def read_index(folder: Folder, key: str | None) -> TrajectoryIndex | None:
    """The committed index of a trajectory; None where nothing was committed.

    Args:
        key: of the trajectory that is meant; None takes any.

    Raises:
        TrajectoryDamaged: if there is an index that is altered, of another format, or of another
            trajectory, or that names shards which are missing or of another size.
    """
    try:
        data = folder.read(INDEX)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        index = _parse(data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TrajectoryDamaged(
            f"{folder.full_uri(INDEX)}: not a valid index: {error}; the clip must be inverted again"
        ) from error
    if key is not None and index.key != key:
        raise TrajectoryDamaged(
            f"{folder.full_uri(INDEX)} is the index of trajectory {index.key}, not of {key}"
        )
    if index.highest < 0:
        raise TrajectoryDamaged(f"{folder.full_uri(INDEX)}: no level is whole")
    for shard in index.shards:
        try:
            size = folder.size(shard.file)
        except FileNotFoundError:
            raise TrajectoryDamaged(
                f"{folder.full_uri(shard.file)} is missing; the clip must be inverted again"
            ) from None
        if size != shard.bytes:
            raise TrajectoryDamaged(
                f"{folder.full_uri(shard.file)} has {size} bytes; its index says {shard.bytes}; "
                "the clip must be inverted again"
            )
    return index


def _parse(data: bytes) -> TrajectoryIndex:
    document = from_json(data)
    body = document["body"]
    if digest(json.dumps(body, sort_keys=True).encode(), 64) != document["digest"]:
        raise ValueError("its digest does not fit its contents")
    if body.pop("format") != FORMAT or body.pop("chunks") != CHUNKS:
        raise ValueError("written by another version")
    shards = tuple(shard_from_record(s) for s in body.pop("shards"))
    for name in ("shape", "timesteps", "alphas"):
        body[name] = tuple(body[name])
    if body["dtype"] not in ITEM_BYTES:
        raise ValueError(f"its dtype is {body['dtype']!r}; expected one of {', '.join(ITEM_BYTES)}")
    if len(body["shape"]) != 4 or not all(type(n) is int and n > 0 for n in body["shape"]):
        raise ValueError(f"its shape is {body['shape']}; expected four sizes")
    return TrajectoryIndex(**body, shards=shards)


def shard_from_record(record: Mapping[str, Any]) -> Shard:
    """A shard from the form that it has in JSON."""
    values = {name: value for name, value in record.items() if name != "sha256"}  # of 0.1
    first, last = record["chunks"]
    within = 0 <= first <= last <= CHUNKS and record["levels"][1] <= MOST_LEVELS
    if "/" in record["file"] or not within:
        raise ValueError(f"its shard {record['file']!r} is none of this trajectory")
    if not all(
        type(record[name]) is int and record[name] >= 0 for name in ("data_offset", "bytes")
    ):
        raise ValueError(f"its shard {record['file']!r} has no numbers of bytes")
    return Shard(
        **{
            **values,
            "levels": tuple(record["levels"]),
            "chunks": tuple(record["chunks"]),
            "digests": tuple(tuple(row) for row in record["digests"]),
        }
    )
