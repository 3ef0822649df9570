"""Every byte of a stored trajectory, checked against its index. Costs no torch."""

from __future__ import annotations

from pipeline.storage import Folder
from pipeline.trajectories.index import (
    ITEM_BYTES,
    Shard,
    TrajectoryDamaged,
    TrajectoryIndex,
    digest,
    read_index,
)


def check_trajectory(folder: Folder, key: str) -> int | None:
    """Read a trajectory whole.

    Returns:
        Its bytes; None where nothing was committed.

    Raises:
        TrajectoryDamaged: it is not what its index says.
    """
    index = read_index(folder, key)
    if index is None:
        return None
    for shard in index.shards:
        _check_shard(folder, index, shard)
    return sum(shard.bytes for shard in index.shards)


def _check_shard(folder: Folder, index: TrajectoryIndex, shard: Shard) -> None:
    """Read a shard, one level at a time."""
    first, last = shard.chunks
    item, base = ITEM_BYTES[index.dtype], index.chunk_start(first)
    for level in range(*shard.levels):
        data = folder.read_range(shard.file, *index.byte_range(shard, level, first, last))
        for chunk in range(first, last):
            start, end = ((index.chunk_start(c) - base) * item for c in (chunk, chunk + 1))
            if digest(data[start:end]) != shard.digest(level, chunk):
                raise TrajectoryDamaged(
                    f"{folder.full_uri(shard.file)}, level {level}: chunk {chunk} is altered; the "
                    "clip must be inverted again"
                )
