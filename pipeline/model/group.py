"""The ranks that compute one prediction together, as the model sees them; and the group of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from pipeline.model.attention.reference import Exchange, attend
from pipeline.model.parallel.degrees import Degrees


class TokenGroup(Protocol):
    """The ranks that share the tokens, and perhaps the branches, of one prediction.

    Args:
        rank, ranks: this rank's number in the group, and how many there are.
        cfg_rank, cfg_ranks: which part of the branches this rank computes, of 1 or 2.
        degrees: how the ranks divide the work.
    """

    @property
    def rank(self) -> int: ...

    @property
    def ranks(self) -> int: ...

    @property
    def cfg_rank(self) -> int: ...

    @property
    def cfg_ranks(self) -> int: ...

    @property
    def degrees(self) -> Degrees: ...

    def gather_values(self, values: Tensor, counts: list[int]) -> Tensor:
        """This rank's flat values -> those of all ranks, `counts[r]` from rank r, in order."""

    def gather_objects(self, value: Any) -> list[Any]:
        """A small Python object of each rank, in order, on every rank."""

    def split(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> this rank's [B, ceil(N / ranks), D], padded where N does not divide."""

    def gather(self, tokens: Tensor, count: int) -> Tensor:
        """This rank's [B, n, D] -> all [B, count, D], padding dropped."""

    def exchange(self, text_tokens: int, video_tokens: int) -> Exchange:
        """Attention over the tokens of all ranks, for so many tokens without padding."""

    def gather_cfg(self, latents: Tensor, counts: Sequence[int]) -> Tensor:
        """This cfg rank's [counts[cfg_rank], ...] -> [sum(counts), ...], the first's ahead."""

    def stop(self) -> None:
        """Leave the group; nothing of it may be used any more."""


class OneRank:
    """The group of one process: nothing to split, gather or exchange."""

    rank, ranks = 0, 1
    cfg_rank, cfg_ranks = 0, 1
    degrees = Degrees()

    def split(self, tokens: Tensor) -> Tensor:
        return tokens

    def gather(self, tokens: Tensor, count: int) -> Tensor:
        return tokens

    def exchange(self, text_tokens: int, video_tokens: int) -> Exchange:
        return attend

    def gather_values(self, values: Tensor, counts: list[int]) -> Tensor:
        return values

    def gather_objects(self, value: Any) -> list[Any]:
        return [value]

    def gather_cfg(self, latents: Tensor, counts: Sequence[int]) -> Tensor:
        return latents

    def stop(self) -> None:
        pass
