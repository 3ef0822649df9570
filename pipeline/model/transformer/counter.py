"""How many forwards a model computed, by what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.algorithm.branches import Branch
from pipeline.model.transformer.batch import needed_references


@dataclass
class ForwardCounter:
    """How many forwards of one latent were computed, by what they cost.

    Args:
        plain: branches that attend to themselves.
        injected: branches that attend to a reference too (about 1.5 times a plain one).
        skipped: those of both kinds that the step cache ended after the first block.
    """

    plain: int = 0
    injected: int = 0
    skipped: int = 0

    @property
    def total(self) -> int:
        """Those that went through all blocks."""
        return self.plain + self.injected

    def add(
        self,
        shares: Sequence[Sequence[Branch]],
        computed: Sequence[Sequence[bool]],
        share: bool,
    ) -> None:
        """Add one prediction's, of all ranks; what both cfg ranks compute counts once.

        Args:
            shares: the branches of each cfg rank.
            computed: for each branch, whether it went through all blocks.
            share: as of `Denoiser.predict`.
        """
        asked: list[str] = []
        needed: list[str] = []
        for branches, whole in zip(shares, computed, strict=True):
            seeing = sum(bool(b.reference and w) for b, w in zip(branches, whole, strict=True))
            self.injected += seeing
            self.plain += sum(whole) - seeing
            self.skipped += len(whole) - sum(whole)
            asked += needed_references(branches, [True] * len(branches), share)
            needed += needed_references(branches, whole, share)
        if share:
            asked, needed = list(set(asked)), list(set(needed))
        self.plain += len(needed)
        self.skipped += len(asked) - len(needed)
