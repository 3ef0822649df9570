"""A stored trajectory read level by level: any group reads just the bytes that it needs.

Levels are fetched ahead of need, from the highest wanted one down, and checked chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from pipeline.dtypes import DTYPES
from pipeline.errors import ErrorCode, RowError, StorageFailed
from pipeline.storage import Folder
from pipeline.trajectories.index import (
    ITEM_BYTES,
    Shard,
    TrajectoryDamaged,
    TrajectoryIndex,
    digest,
    slice_of,
)

Gather = Callable[[Tensor, list[int]], Tensor]
"""(this rank's values, the count of each rank) -> the values of all ranks, in their order."""

READ_AHEAD = 6
"""Levels fetched before they are asked for: at 50 ms a request this hides steps above 10 ms."""


DAMAGED = 1
"""What a rank adds to its values where it has none; above it is the place of an error's code."""


class OtherSliceDamaged(TrajectoryDamaged):
    """Another rank's slice is damaged; that rank reports it."""


class TrajectoryReader:
    """Reads the levels of a committed trajectory, from the highest wanted one down, ahead of need.

    Args:
        rank, ranks: this rank fetches and checks its own slice only.
        gather: joins the slices of all ranks; needed where there is more than one.
        highest: the first level that will be asked for; reading ahead starts there.

    Raises (from `entry`):
        TrajectoryDamaged: a shard is missing, cut or altered.
        StorageFailed: it cannot be read; where there are several ranks a RowError, on all of them.
    """

    def __init__(
        self,
        folder: Folder,
        index: TrajectoryIndex,
        *,
        rank: int = 0,
        ranks: int = 1,
        gather: Gather | None = None,
        highest: int | None = None,
        read_ahead: int = READ_AHEAD,
    ) -> None:
        self.folder, self.index = folder, index
        self.rank, self.ranks, self.gather = rank, ranks, gather
        self.bytes_read = 0
        self.read_ahead = read_ahead
        self._pool = ThreadPoolExecutor(max(1, read_ahead), thread_name_prefix="trajectory")
        self._ahead: dict[int, Future[Tensor]] = {}
        self._entries: dict[int, Tensor] = {}
        self._want(index.highest if highest is None else min(highest, index.highest))

    def __enter__(self) -> TrajectoryReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """[L + 1, F, C, H, W], as of a tensor of all entries."""
        return (len(self), *self.index.shape)

    def __len__(self) -> int:
        return self.index.highest + 1

    def __getitem__(self, level: int, /) -> Tensor:
        return self.entry(level)

    def entry(self, level: int) -> Tensor:
        """The latent of a level, [F, C, H, W], float32. The last two entries stay at hand."""
        if not 0 <= level <= self.index.highest:
            raise IndexError(f"level {level} is not stored: there are 0..{self.index.highest}")
        if level not in self._entries:
            self._want(level)
            values = self._joined(self._ahead.pop(level))
            entry = values.reshape(self.index.shape).float()
            self._entries = {k: v for k, v in self._entries.items() if abs(k - level) <= 1}
            self._entries[level] = entry
        return self._entries[level]

    def _joined(self, fetched: Future[Tensor]) -> Tensor:
        """All values of a level. What one rank cannot read is raised on every rank."""
        if self.ranks == 1 or self.gather is None:
            return fetched.result()
        counts = [self._count(rank) for rank in range(self.ranks)]
        problem: TrajectoryDamaged | RowError | None = None
        values = torch.zeros(counts[self.rank], dtype=DTYPES[self.index.dtype])
        try:
            values = fetched.result()
        except TrajectoryDamaged as error:
            problem = error
        except StorageFailed as error:
            problem = RowError(error.trouble.code, str(error))
        flagged = torch.cat([values, torch.tensor([_flag_of(problem)], dtype=values.dtype)])
        slices = self.gather(flagged, [count + 1 for count in counts]).split(
            [count + 1 for count in counts]
        )
        if flag := max(int(part[-1]) for part in slices):
            raise problem or self._problem_of_another(flag)
        return torch.cat([part[:-1] for part in slices])

    def _problem_of_another(self, flag: int) -> TrajectoryDamaged | RowError:
        if flag == DAMAGED:
            return OtherSliceDamaged(f"{self.folder.uri}: another rank's slice is damaged")
        text = f"{self.folder.uri}: another rank of the group could not read its slice"
        return RowError(list(ErrorCode)[flag - DAMAGED - 1], text)

    def _want(self, level: int) -> None:
        for wanted in range(level, max(level - self.read_ahead, -1), -1):
            if wanted not in self._ahead and wanted not in self._entries:
                self._ahead[wanted] = self._pool.submit(self._fetch, wanted)

    def _count(self, rank: int) -> int:
        first, last = slice_of(rank, self.ranks)
        return self.index.chunk_start(last) - self.index.chunk_start(first)

    def _fetch(self, level: int) -> Tensor:
        """This rank's values of a level, flat, checked chunk by chunk."""
        first, last = slice_of(self.rank, self.ranks)
        parts: list[bytes] = []
        chunk = first
        while chunk < last:
            shard = self._holder(level, chunk)
            end = min(last, shard.chunks[1])
            parts.append(self._fetch_chunks(shard, level, chunk, end))
            chunk = end
        data = bytearray(b"".join(parts))
        return torch.frombuffer(data, dtype=DTYPES[self.index.dtype])

    def _holder(self, level: int, chunk: int) -> Shard:
        for shard in reversed(self.index.shards):
            if shard.holds(level) and shard.chunks[0] <= chunk < shard.chunks[1]:
                return shard
        raise TrajectoryDamaged(f"no shard holds chunk {chunk} of level {level}")

    def _fetch_chunks(self, shard: Shard, level: int, first: int, last: int) -> bytes:
        start, end = self.index.byte_range(shard, level, first, last)
        where = f"{self.folder.full_uri(shard.file)}, level {level}"
        try:
            data = self.folder.read_range(shard.file, start, end)
        except FileNotFoundError:
            raise TrajectoryDamaged(
                f"{where}: the file is missing; the clip must be inverted again"
            ) from None
        self.bytes_read += len(data)
        if len(data) != end - start:
            raise TrajectoryDamaged(
                f"{where}: the file is cut short; the clip must be inverted again"
            )
        item = ITEM_BYTES[self.index.dtype]
        base = self.index.chunk_start(first)
        for chunk in range(first, last):
            a, b = ((self.index.chunk_start(c) - base) * item for c in (chunk, chunk + 1))
            if digest(data[a:b]) != shard.digest(level, chunk):
                raise TrajectoryDamaged(
                    f"{where}: chunk {chunk} is altered; the clip must be inverted again"
                )
        return data


def _flag_of(problem: TrajectoryDamaged | RowError | None) -> int:
    if isinstance(problem, RowError):
        return DAMAGED + 1 + list(ErrorCode).index(problem.code)
    return DAMAGED if problem else 0
