"""A device's memory that tests stand in for a GPU's."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

GB = 10**9


@dataclass
class StubMemory:
    """`pipeline.model.memory.Memory` with numbers of a test's own.

    Args:
        left: bytes that are free; None where nothing is known.
        size: bytes of the device.
        released: for each `release`, the exception that was being handled: there must be none,
            since its traceback would hold the tensors that are to be given back.
    """

    left: float | None
    size: float | None = None
    released: list[BaseException | None] = field(default_factory=list)

    def free(self) -> int | None:
        return None if self.left is None else int(self.left)

    def total(self) -> int | None:
        return self.free() if self.size is None else int(self.size)

    def release(self) -> None:
        self.released.append(sys.exc_info()[1])
