"""The branches of one prediction side by side, and how they are shared out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.algorithm.branches import Branch, Prompt


@dataclass(frozen=True)
class Batch:
    """Branches and the references that they attend to, side by side.

    Args:
        latents: [B, F, C, H, W], the branches' first.
        prompts: embeddings [B, L, D].
        references: the texts of the references' prompts.
        reference_index: for each branch, the reference that it attends to; empty where none does.
        cached: branches that keep what the blocks added, from step to step.
    """

    latents: Tensor
    prompts: Tensor
    references: list[str]
    reference_index: list[int]
    cached: int = 0

    @classmethod
    def of(
        cls,
        branches: Sequence[Branch],
        reference: Tensor | None,
        share: bool,
        cached: bool = False,
    ) -> Batch:
        asked, unique = references_of(branches, share)
        if asked and (reference is None or len(asked) != len(branches)):
            raise ValueError("either every branch of a call attends to a reference or none")
        texts = [prompt.text for prompt in unique]
        index = [texts.index(p.text) for p in asked] if share else list(range(len(asked)))
        sources = [b.latents for b in branches] + [reference] * len(unique)
        prompts = [b.prompt for b in branches] + unique
        return cls(
            torch.stack([x for x in sources if x is not None]),
            torch.stack([prompt.embedding for prompt in prompts]),
            texts,
            index,
            len(branches) * cached,
        )


@dataclass
class Part:
    """The branches of a batch that go through a block together.

    Args:
        rows: their places in the batch.
        video, text: their tokens [rows, N, D] on this rank, between two blocks.
        seen: for each of them, the reference that it attends to, in the order in which these go
            through the block; empty for references, and where none is attended to.
    """

    rows: list[int]
    video: Tensor
    text: Tensor
    seen: list[int]


def keep_rows(parts: Sequence[Part], rows: Sequence[int], edits: int) -> list[Part]:
    """The parts of a batch with some of its rows only.

    Args:
        rows: of the batch, with the references that the others of them attend to.
        edits: rows below this are edits', those from here on references.
    """
    references = [row for row in rows if row >= edits]
    place = {row - edits: place for place, row in enumerate(references)}
    some = []
    for part in parts:
        index = [i for i, row in enumerate(part.rows) if row in rows]
        whole = len(index) == len(part.rows)
        some.append(
            Part(
                [part.rows[i] for i in index],
                part.video if whole else part.video[index],
                part.text if whole else part.text[index],
                [place[part.seen[i]] for i in index] if part.seen else [],
            )
        )
    return [part for part in some if part.rows]


def references_of(branches: Sequence[Branch], share: bool) -> tuple[list[Prompt], list[Prompt]]:
    """The prompt of each branch's reference, and those of the references to compute."""
    asked = [b.reference for b in branches if b.reference is not None]
    return asked, list({p.text: p for p in asked}.values()) if share else asked


def needed_places(branches: Sequence[Branch], computed: Sequence[bool], share: bool) -> list[int]:
    """The places, among the references to compute, of those that computed branches attend to."""
    asked, unique = references_of(branches, share)
    seeing = [done for branch, done in zip(branches, computed, strict=True) if branch.reference]
    if not share:
        return [place for place, done in enumerate(seeing) if done]
    needed = {prompt.text for prompt, done in zip(asked, seeing, strict=True) if done}
    return [place for place, prompt in enumerate(unique) if prompt.text in needed]


def needed_references(
    branches: Sequence[Branch], computed: Sequence[bool], share: bool
) -> list[str]:
    """The texts of the references that computed branches attend to, in the batch's order."""
    unique = references_of(branches, share)[1]
    return [unique[place].text for place in needed_places(branches, computed, share)]


def split_batch(batch: int, edits: int, size: int) -> list[slice]:
    """The rows of a batch `[edits | references]` in parts, the references' parts first."""
    starts = [*range(edits, batch, size), *range(0, edits, size)]
    return [slice(i, min(i + size, edits if i < edits else batch)) for i in starts]


def split_branches(branches: Sequence[Branch], cfg_ranks: int) -> list[Sequence[Branch]]:
    """The branches of each cfg rank: an edit's negative one on the first, its positive on the next.

    Of several edits the first ones go to the first rank, so that each has fewer references to
    compute. One branch alone cannot be split: every rank computes it.
    """
    if cfg_ranks == 1 or len(branches) < cfg_ranks:
        return [branches]
    middle = (len(branches) + 1) // 2
    return [branches[:middle], branches[middle:]]
