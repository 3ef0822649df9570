"""Each rank writes its slice of a trajectory as one shard.

Shards are safetensors files with one tensor for each level, so other tools open them too. They are
written from host memory, beside the next work; `pipeline.trajectories.index.commit` makes them
count.
"""

from __future__ import annotations

import json
import uuid
from itertools import pairwise
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor

from pipeline.dtypes import DTYPES
from pipeline.storage import Folder
from pipeline.trajectories.index import CHUNKS, Shard, digest, slice_of

Dtype = Literal["fp16", "bf16", "fp32"]


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


def _data_offset(data: bytes, header: int, names: list[str]) -> int:
    """The byte at which the first level lies; levels must follow each other in their order."""
    table = json.loads(data[8 : 8 + header])
    offsets = [table[name]["data_offsets"] for name in names]
    if offsets[0][0] != 0 or any(a[1] != b[0] for a, b in pairwise(offsets)):
        raise RuntimeError("safetensors no longer lays tensors out in the order of their names")
    return 8 + header
