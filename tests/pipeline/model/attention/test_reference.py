"""Keys and values of references beside those of edits, in buffers and without."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.algorithm.branches import Branch
from pipeline.model.attention.choice import Shape
from pipeline.model.attention.reference import References, with_references
from tests.pipeline.model.test_transformer import draw, small_model

SHAPE = Shape(2, 5, 10, 8, torch.float32, torch.device("cpu"))


def keys_and_values(branches: int, seed: int) -> list[Tensor]:
    """[branches, 2, 5, 8] each, heads inside of tokens as a block's projections leave them."""
    k, v = draw(2, branches, 5, 2, 8, seed=seed).transpose(2, 3)
    return [k, v]


def test_edits_see_their_own_and_then_the_references_keys_and_values() -> None:
    """In parts of two, then one: the buffers are larger than the last part."""
    references = References.of(SHAPE, 1, edits=2)
    assert references.buffers is not None
    for block in range(2):
        references = references.emptied()
        reference = keys_and_values(1, seed=block)
        assert with_references(*reference, [], references) == tuple(reference)
        for part, size in enumerate((2, 1)):
            own = keys_and_values(size, seed=10 * part + block + 5)
            joined = with_references(*own, [0] * size, references)
            for mine, its, both in zip(own, reference, joined, strict=True):
                assert torch.equal(both, torch.cat([mine, its.expand(size, -1, -1, -1)], dim=2))
                assert both.is_contiguous()
                assert any(both.data_ptr() == x.data_ptr() for x in references.buffers)


def test_each_of_several_references_is_seen_by_its_own_edits() -> None:
    references = References.of(SHAPE, 2, edits=3)
    assert references.buffers is None
    seen, own = keys_and_values(2, seed=0), keys_and_values(3, seed=1)
    with_references(*seen, [], references)
    joined = with_references(*own, [1, 0, 1], references)
    for mine, its, both in zip(own, seen, joined, strict=True):
        assert torch.equal(both, torch.cat([mine, its[[1, 0, 1]]], dim=2))


def test_rings_steps_bring_other_tokens_each() -> None:
    references = References.of(replace(SHAPE, logsumexp=True), 1, edits=2)
    assert references.buffers is None
    steps = [keys_and_values(1, seed=step) for step in range(2)]
    for step, seen in enumerate(steps):
        with_references(*seen, [], references, step)
    own = keys_and_values(1, seed=7)
    for step, seen in enumerate(steps):
        joined = with_references(*own, [0], references, step)
        for mine, its, both in zip(own, seen, joined, strict=True):
            assert torch.equal(both, torch.cat([mine, its], dim=2))


@pytest.mark.parametrize("family", ["2b", "5b", "1.5-5b"])
@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_buffers_and_concatenation_give_the_same_bytes(
    family: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(family)
    model.max_branches = at_once
    x = draw(3, 4 if family == "1.5-5b" else 3, 16, 8, 12)
    branches = [Branch(latents, "ab"[i % 2], "") for i, latents in enumerate(x)]
    inside = (0, len(model.transformer.transformer_blocks) - 1)
    found = [model.predict(branches, 500, x[0], blocks=blocks)[0] for blocks in (None, inside)]
    laid_out: list[int] = []
    monkeypatch.setattr(References, "of", lambda *_: laid_out.append(1) or References())
    for blocks, expected in zip((None, inside), found, strict=True):
        for a, b in zip(
            model.predict(branches, 500, x[0], blocks=blocks)[0], expected, strict=True
        ):
            assert torch.equal(a, b)
    assert len(laid_out) == 2
