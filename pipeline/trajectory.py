"""Stored trajectories: each rank writes its slice as a shard, any group reads what it needs.

Shards are safetensors files with one tensor for each level, so other tools open them too. They are
written from host memory, beside the next work; `pipeline.index.commit` makes them count.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor

from pipeline.dtypes import DTYPES
from pipeline.index import (
    CHUNKS,
    ITEM_BYTES,
    Shard,
    TrajectoryDamaged,
    TrajectoryIndex,
    digest,
    slice_of,
)
from pipeline.storage import Folder

Dtype = Literal["fp16", "bf16", "fp32"]
Gather = Callable[[Tensor, list[int]], Tensor]
"""(this rank's values, the count of each rank) -> the values of all ranks, in their order."""

READ_AHEAD = 6
"""Levels fetched before they are asked for: at 50 ms a request this hides steps above 10 ms."""


class OtherSliceDamaged(TrajectoryDamaged):
    """Another rank's slice is damaged; that rank knows more."""


class ShardWriter:
    """Takes a rank's slice of each level to host memory and stores it as one file.

    Args:
        folder: `<output>/trajectories/<key>`.
        first_level: the level of the first entry that will be added.
    """

    def __init__(
        self, folder: Folder, dtype: Dtype, *, rank: int = 0, ranks: int = 1, first_level: int = 0
    ) -> None:
        self.folder = folder
        self.dtype = dtype
        self.rank, self.ranks = rank, ranks
        self.first_level = first_level
        self._rows: list[Tensor] = []

    def add(self, latents: Tensor) -> None:
        """Add the next level's latents [F, C, H, W]; only this rank's slice is kept."""
        flat = latents.flatten()
        first, last = (flat.numel() * c // CHUNKS for c in slice_of(self.rank, self.ranks))
        row = flat[first:last].to(DTYPES[self.dtype])
        self._rows.append(row.to("cpu", copy=True))
        self._values = flat.numel()

    def store(self) -> Shard:
        """Write the file. The name holds a random part: another writer never overwrites it.

        Raises:
            ValueError: if a value is not finite in the stored dtype.
        """
        rows = torch.stack(self._rows)
        if not torch.isfinite(rows).all():
            raise ValueError(f"the trajectory holds values that are not finite in {self.dtype}")
        names = [f"level_{self.first_level + i:04d}" for i in range(len(rows))]
        data = save(dict(zip(names, rows.unbind(), strict=True)))
        chunks = slice_of(self.rank, self.ranks)
        file = (
            f"shard-{self.rank:05d}-of-{self.ranks:05d}"
            f"-level-{self.first_level:04d}-{uuid.uuid4().hex[:8]}.safetensors"
        )
        header = int.from_bytes(data[:8], "little")
        self.folder.write(file, data)
        return Shard(
            file=file,
            levels=(self.first_level, self.first_level + len(rows)),
            chunks=chunks,
            data_offset=_data_offset(data, header, names),
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            digests=tuple(self._digests(row, chunks) for row in rows),
        )

    def _digests(self, row: Tensor, chunks: tuple[int, int]) -> tuple[str, ...]:
        bounds = [self._values * c // CHUNKS for c in range(chunks[0], chunks[1] + 1)]
        data = row.contiguous().view(torch.uint8).numpy().tobytes()
        item = row.element_size()
        return tuple(
            digest(data[(a - bounds[0]) * item : (b - bounds[0]) * item])
            for a, b in pairwise(bounds)
        )


class TrajectoryReader:
    """Reads the levels of a committed trajectory, from the highest wanted one down, ahead of need.

    Args:
        rank, ranks: this rank fetches and checks its own slice only.
        gather: joins the slices of all ranks; needed where there is more than one.
        highest: the first level that will be asked for; reading ahead starts there.

    Raises (from `entry`):
        TrajectoryDamaged: a shard is missing, cut or altered.
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
        """All values of a level. Damage in one rank's slice is raised on every rank."""
        if self.ranks == 1 or self.gather is None:
            return fetched.result()
        counts = [self._count(rank) for rank in range(self.ranks)]
        damage: TrajectoryDamaged | None = None
        try:
            values = fetched.result()
        except TrajectoryDamaged as error:
            damage, values = error, torch.zeros(counts[self.rank], dtype=DTYPES[self.index.dtype])
        flagged = torch.cat([values, torch.tensor([damage is not None], dtype=values.dtype)])
        slices = self.gather(flagged, [count + 1 for count in counts]).split(
            [count + 1 for count in counts]
        )
        if damage or any(part[-1] for part in slices):
            raise damage or OtherSliceDamaged(f"{self.folder.uri}: another rank's slice is damaged")
        return torch.cat([part[:-1] for part in slices])

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
            raise TrajectoryDamaged(f"{where}: the file is missing") from None
        self.bytes_read += len(data)
        if len(data) != end - start:
            raise TrajectoryDamaged(f"{where}: the file is cut short")
        item = ITEM_BYTES[self.index.dtype]
        base = self.index.chunk_start(first)
        for chunk in range(first, last):
            a, b = ((self.index.chunk_start(c) - base) * item for c in (chunk, chunk + 1))
            if digest(data[a:b]) != shard.digest(level, chunk):
                raise TrajectoryDamaged(f"{where}: chunk {chunk} is altered")
        return data


def _data_offset(data: bytes, header: int, names: list[str]) -> int:
    """The byte at which the first level lies; levels must follow each other in their order."""
    table = json.loads(data[8 : 8 + header])
    offsets = [table[name]["data_offsets"] for name in names]
    if offsets[0][0] != 0 or any(a[1] != b[0] for a, b in pairwise(offsets)):
        raise RuntimeError("safetensors no longer lays tensors out in the order of their names")
    return 8 + header
