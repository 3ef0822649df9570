from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pipeline.model.checkpoint import CheckpointInfo
from pipeline.model.parallel.degrees import Degrees, check_degrees, choose_degrees, legal_degrees

SIZE = {"frames": 49, "height": 480, "width": 720}  # 17550 tokens with 5b


def checkpoint(heads: int = 48) -> CheckpointInfo:
    return CheckpointInfo(
        path=Path(),
        family="5b",
        transformer={"num_attention_heads": heads, "patch_size": 2},
        vae={
            "block_out_channels": (1, 1, 1, 1),
            "temporal_compression_ratio": 4,
            "latent_channels": 16,
        },
        scheduler={},
        fingerprint="",
    )


@pytest.mark.parametrize(
    ("heads", "gpus", "cfg", "expected"),
    [
        (48, 1, 1, Degrees(1, 1, 1)),
        (48, 8, 1, Degrees(8, 1, 1)),
        (48, 8, 2, Degrees(4, 1, 2)),
        (48, 5, 1, Degrees(1, 5, 1)),
        (30, 4, 1, Degrees(2, 2, 1)),
        (30, 8, 1, Degrees(2, 4, 1)),
        (30, 6, 2, Degrees(3, 1, 2)),
    ],
)
def test_auto_takes_the_largest_ulysses_degree_and_leaves_the_rest_to_ring(
    heads: int, gpus: int, cfg: int, expected: Degrees
) -> None:
    assert choose_degrees(checkpoint(heads), gpus=gpus, cfg=cfg) == expected


def test_auto_keeps_the_ring_degree_that_is_asked_for() -> None:
    assert choose_degrees(checkpoint(), gpus=8, ring=2) == Degrees(4, 2, 1)


def test_auto_refuses_degrees_that_do_not_divide_the_gpus() -> None:
    with pytest.raises(ValueError, match="ring 1 x cfg 2 does not divide a group of 3 GPUs"):
        choose_degrees(checkpoint(), gpus=3, cfg=2)


def test_auto_is_replaced_where_degrees_are_checked() -> None:
    checked = check_degrees(checkpoint(), gpus=6, ulysses="auto", ring=1, cfg=2, **SIZE)
    assert checked == Degrees(3, 1, 2)


def test_auto_is_refused_where_a_clip_has_too_few_tokens() -> None:
    with pytest.raises(ValueError, match=r"over 4 ranks, but there are 3\. Legal for 4 GPUs"):
        check_degrees(
            checkpoint(), gpus=4, ulysses="auto", ring=1, cfg=1, frames=1, height=16, width=48
        )


@pytest.mark.parametrize("gpus", range(1, 17))
@pytest.mark.parametrize("heads", [30, 48])
def test_what_auto_takes_is_legal(heads: int, gpus: int) -> None:
    info = checkpoint(heads)
    chosen = choose_degrees(info, gpus=gpus)
    assert check_degrees(info, gpus=gpus, **dataclasses.asdict(chosen), **SIZE) == chosen


@pytest.mark.parametrize(
    ("degrees", "message"),
    [
        ((7, 1, 1), "ulysses is 7, which does not divide 48 heads"),
        ((0, 4, 1), "ulysses is 0, but must be at least 1"),
        ((4, -1, 1), "ring is -1, but must be at least 1"),
        ((1, 1, 4), "cfg is 4, but guidance has two branches: it must be 1 or 2"),
        ((2, 1, 1), "ulysses 2 x ring 1 x cfg 1 makes 2 ranks, but the group has 4 GPUs"),
    ],
)
def test_illegal_degrees_are_refused_with_the_value_and_the_legal_ones(
    degrees: tuple[int, int, int], message: str
) -> None:
    ulysses, ring, cfg = degrees
    with pytest.raises(ValueError) as refusal:
        check_degrees(checkpoint(), gpus=4, ulysses=ulysses, ring=ring, cfg=cfg, **SIZE)
    assert str(refusal.value) == (
        f"{message}. Legal for 4 GPUs with this 5b checkpoint (48 heads) "
        "at 49 frames of 480x720 (17550 tokens): "
        "ulysses 2 x ring 1 x cfg 2; ulysses 1 x ring 2 x cfg 2; "
        "ulysses 4 x ring 1 x cfg 1; ulysses 2 x ring 2 x cfg 1; ulysses 1 x ring 4 x cfg 1"
    )


def test_a_clip_with_fewer_tokens_than_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"over 4 ranks, but there are 3.*ulysses 2 x ring 1"):
        check_degrees(checkpoint(), gpus=4, ulysses=4, ring=1, cfg=1, frames=1, height=16, width=48)


def test_every_legal_division_is_listed_once() -> None:
    legal = legal_degrees(12, 48, 17550)
    assert len(set(legal)) == len(legal) == 10
    assert all(degrees.ranks == 12 for degrees in legal)


def test_where_nothing_is_legal_a_smaller_group_is_advised() -> None:
    with pytest.raises(ValueError, match="none, take fewer GPUs"):
        check_degrees(checkpoint(), gpus=8, ulysses=8, ring=1, cfg=1, frames=1, height=16, width=48)
