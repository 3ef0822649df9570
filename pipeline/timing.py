"""What work reports of itself: the seconds of each named part, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

OnProgress = Callable[[str], None]
"""Called with what was done last, as part of a sentence: `denoising step 7 of 15`. Whoever waits
for the work can tell slow from stuck."""


def unheard(_: str) -> None:
    """Progress that nobody waits for."""


@dataclass
class Timer:
    """`with timer("encode"): ...` adds to `timer.seconds["encode"]`.

    Args:
        device: an accelerator's queue is waited for, so that a part's seconds are its own.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add what another timer measured."""
        for part, spent in seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + spent
