"""The VAE's conventions: ranges, scaling, draws, padded frames, tiles, and frame counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.errors import ErrorCode, RowError
from pipeline.model.footprint import vae_bytes
from pipeline.model.group import OneRank
from pipeline.model.memory import HEADROOM
from pipeline.model.tiles import tile_plan
from pipeline.model.vae import Codec, pad_frames, set_tiles, to_uint8
from tests.small_models import HEIGHT, WIDTH, make_vae
from tests.stub_memory import GB, StubMemory


@pytest.fixture(scope="module")
def vae() -> Any:
    return make_vae()


def clip(frames: int, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, height, width, 3), generator=draw, dtype=torch.uint8)


@pytest.mark.parametrize("frames", [1, 5, 9, 13])
@pytest.mark.parametrize("multiple", [1, 2])
def test_as_many_frames_come_out_as_went_in(vae: Any, frames: int, multiple: int) -> None:
    """Also where the latents are even in number, which the VAE decodes to three frames more."""
    codec = Codec(vae, multiple)
    encoded = codec.encode(clip(frames, 32, 48))
    count = (frames - 1) // 4 + 1
    assert encoded.shape == (count + count % multiple, 16, 4, 6)
    assert encoded.dtype == torch.float32
    decoded = codec.decode(encoded, frames)
    assert decoded.shape == (frames, 32, 48, 3)
    assert decoded.dtype == torch.float32


def test_frames_of_an_even_count_of_latents_are_those_of_the_odd_count_before() -> None:
    """The VAE is causal: the first 5 of 9 frames hang on the first two latents only."""
    codec = Codec(make_vae())
    encoded = codec.encode(clip(9, 32, 48))
    longer, shorter = codec.decode(encoded, 9), codec.decode(encoded[:2], 5)
    assert torch.allclose(longer[1:5], shorter[1:], atol=0.02)
    assert not torch.allclose(longer[2:6], shorter[1:], atol=0.02)


def test_latents_are_the_scaled_mode_of_frames_from_minus_one_to_one(vae: Any) -> None:
    frames = clip(5)
    video = (frames.float() / 255 * 2 - 1).permute(3, 0, 1, 2)[None]
    with torch.no_grad():
        mode = vae.encode(video).latent_dist.mode()
    expected = mode[0].transpose(0, 1) * vae.config.scaling_factor
    assert torch.allclose(Codec(vae).encode(frames), expected, atol=1e-5)
    with torch.no_grad():
        decoded = vae.decode(mode).sample[0, :, -5:].permute(1, 2, 3, 0) / 2 + 0.5
    assert torch.allclose(Codec(vae).decode(expected, 5), decoded, atol=1e-5)


def test_a_draw_from_the_posterior_is_its_seeds_own() -> None:
    vae, frames = make_vae(), clip(5)
    with torch.no_grad():
        vae.encoder.conv_out.conv.bias[16:] -= 3  # a narrower posterior than the random one's
    codec = Codec(vae)
    mode = codec.encode(frames)
    assert torch.equal(mode, codec.encode(frames, seed=9))
    a, b, other = (codec.encode(frames, "sample", seed) for seed in (3, 3, 4))
    assert torch.equal(a, b)
    assert (a - other).abs().max() > 1e-3
    with torch.no_grad():
        video = (frames.float() / 127.5 - 1).permute(3, 0, 1, 2)[None]
        std = vae.encode(video).latent_dist.std[0].transpose(0, 1) * vae.config.scaling_factor
    assert ((a - mode) / std).std().item() == pytest.approx(1, abs=0.1)


def test_what_was_padded_in_front_is_dropped_again(vae: Any) -> None:
    frames = clip(9, 32, 48)
    plain, padded = Codec(vae).encode(frames), Codec(vae, 2).encode(frames)
    assert torch.equal(padded[1:], plain)
    assert torch.equal(padded[0], plain[0])
    assert torch.equal(Codec(vae, 2).decode(padded, 9), Codec(vae).decode(plain, 9))


@given(count=st.integers(1, 30), multiple=st.integers(1, 4))
def test_padding_repeats_the_first_frame_up_to_the_next_multiple(count: int, multiple: int) -> None:
    x = torch.arange(float(count))[:, None]
    padded = pad_frames(x, multiple)
    assert len(padded) % multiple == 0
    assert 0 <= len(padded) - count < multiple
    assert torch.equal(padded[-count:], x)
    assert torch.equal(padded[:-count], torch.zeros(len(padded) - count, 1))


BIG = (1, 96, 160)
"""Frames, height and width of a clip that is cut into two tiles of the small VAE, or into four."""


def in_tiles(vae: Any, memory: StubMemory, **how: Any) -> Codec:
    """A codec that takes frames of 96x160 whole, in two tiles, or in four."""
    vae.enable_tiling(56, 96)  # smaller than the frame, as the published VAE's are
    vae.disable_tiling()
    return Codec(vae, memory=memory, **how)


def needed(vae: Any, decode: bool, tile: tuple[int, int] | None = None) -> float:
    """Free bytes that a GPU must have for a frame of 96x160."""
    return vae_bytes(vae.config, *BIG, 4, decode=decode, tile=tile) / HEADROOM["cpu"] + 1


@pytest.mark.parametrize("decode", [False, True])
def test_a_frame_goes_whole_or_in_tiles_as_the_free_memory_allows(decode: bool) -> None:
    vae = make_vae()
    x: Tensor = Codec(vae).encode(clip(*BIG)) if decode else clip(*BIG)
    memory = StubMemory(needed(vae, decode))
    codec = in_tiles(vae, memory)
    whole = codec.decode(x, 1) if decode else codec.encode(x)
    assert not vae.use_tiling
    memory.left = needed(vae, decode) - 9
    tiled = codec.decode(x, 1) if decode else codec.encode(x)
    assert (vae.tile_sample_min_height, vae.tile_sample_min_width) == (56, 176)
    memory.left = 0
    small = codec.decode(x, 1) if decode else codec.encode(x)
    assert (vae.tile_sample_min_height, vae.tile_sample_min_width) == (56, 96)
    assert whole.shape == tiled.shape == small.shape
    assert not torch.equal(whole, tiled)
    assert not torch.equal(tiled, small)
    memory.left = None
    assert torch.equal(codec.decode(x, 1) if decode else codec.encode(x), whole)


@pytest.mark.parametrize("frame", [(60, 90), (96, 170), (52, 46), (31, 45), (135, 240)])
def test_tiles_of_any_plan_make_of_a_frame_what_the_frame_is(frame: tuple[int, int]) -> None:
    """diffusers' own tiling, with an encoder that averages and a decoder that repeats pixels."""
    vae = make_vae()
    vae.enable_tiling(240, 360)
    pixels = torch.rand(1, 3, 1, frame[0] * 8, frame[1] * 8)
    latents = pooled(pixels)
    vae.encoder, vae.decoder = Simple(pooled), Simple(repeated)
    plan = tile_plan(frame, (30, 45), (5, 9))
    assert plan[0] is None
    areas = []
    for tiles in plan[1:]:
        assert tiles is not None
        set_tiles(vae, tiles)
        assert torch.allclose(vae.tiled_encode(pixels), latents, atol=1e-5)
        assert torch.allclose(vae.tiled_decode(latents).sample, repeated(latents), atol=1e-5)
        areas.append(tiles.area)
    assert areas == sorted(areas, reverse=True)
    assert tiles is not None
    assert min(tiles.height, frame[0]) <= 30
    assert min(tiles.width, frame[1]) <= 45


def pooled(pixels: Tensor) -> Tensor:
    return F.avg_pool3d(pixels, (1, 8, 8))


def repeated(latents: Tensor) -> Tensor:
    return F.interpolate(latents, scale_factor=(1, 8, 8))


class Simple(torch.nn.Module):
    """An encoder or a decoder of a VAE that sees no further than a latent."""

    def __init__(self, work: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.work = work

    def forward(self, x: Tensor, conv_cache: Any) -> tuple[Tensor, None]:
        return self.work(x), None


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("fails", [1, 2])
def test_memory_that_runs_out_leads_to_the_next_tiles(
    decode: bool, fails: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = make_vae()
    x: Tensor = Codec(vae).encode(clip(*BIG)) if decode else clip(*BIG)
    memory = StubMemory(needed(vae, decode))
    codec = in_tiles(vae, memory)
    tries = fail_at_first(vae, "decode" if decode else "encode", fails, monkeypatch)
    made = codec.decode(x, 1) if decode else codec.encode(x)
    assert tries == [None, (56, 176), (56, 96)][: fails + 1]
    assert memory.released == [None] * fails
    tries.clear()
    again = codec.decode(x, 1) if decode else codec.encode(x)
    assert len(tries) == 1, "what ran out of memory once is tried again"
    assert torch.equal(made, again)


@pytest.mark.parametrize("decode", [False, True])
def test_tiles_that_do_not_fit_are_a_row_error_with_the_way_out(
    decode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = make_vae()
    x: Tensor = Codec(vae).encode(clip(*BIG)) if decode else clip(*BIG)
    memory = StubMemory(3.25 * GB)
    codec = in_tiles(vae, memory)
    tries = fail_at_first(vae, "decode" if decode else "encode", 9, monkeypatch)
    verb = "decode" if decode else "encode"
    with pytest.raises(
        RowError,
        match=rf"the VAE ran out of memory to {verb} 1 frames of 96x160 \(OutOfMemoryError: full\)"
        r": in its smallest tiles that takes about 0.0 GB, and 3.2 GB are free. Make the clip "
        r"smaller \(video.height, video.width, video.frames\), or take",
    ) as no:
        _ = codec.decode(x, 1) if decode else codec.encode(x)
    assert no.value.code == ErrorCode.OUT_OF_MEMORY
    assert not no.value.needs_restart
    assert len(tries) == 3
    assert memory.released == [None] * 3


def fail_at_first(vae: Any, name: str, fails: int, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let the VAE run out of memory so many times; returns the tiles of each try."""
    tries: list[Any] = []
    failures = iter(range(fails))
    real = getattr(vae, name)

    def full(*arguments: Any) -> Any:
        tile = (vae.tile_sample_min_height, vae.tile_sample_min_width)
        tries.append(tile if vae.use_tiling else None)
        if next(failures, None) is not None:
            raise torch.OutOfMemoryError("full")
        return real(*arguments)

    monkeypatch.setattr(vae, name, full)
    return tries


class Ranks(OneRank):
    """A rank of a group of two whose other rank gives the numbers that a test says."""

    ranks = 2

    def __init__(self, *others: int) -> None:
        self.others = list(others)

    def gather_objects(self, value: Any) -> list[Any]:
        return [value, self.others.pop(0)]


def test_ranks_of_a_group_encode_alike_and_decode_alone() -> None:
    vae = make_vae()
    memory = StubMemory(needed(vae, False))
    alone = in_tiles(vae, memory)
    whole = alone.encode(clip(*BIG))
    alone.memory = StubMemory(0)
    small = alone.encode(clip(*BIG))
    # The other rank begins with the first tiles, and its memory runs out there.
    codec = in_tiles(make_vae(), memory, group=Ranks(1, 2, 2))
    assert torch.equal(codec.encode(clip(*BIG)), small)
    assert not memory.released, "this rank's memory did not run out"
    memory.left = needed(vae, True)
    assert torch.equal(codec.decode(whole, 1), Codec(vae).decode(whole, 1))


def test_where_another_rank_has_no_memory_at_all_every_rank_says_so() -> None:
    memory = StubMemory(GB)
    codec = in_tiles(make_vae(), memory, group=Ranks(2, 3))
    with pytest.raises(RowError, match="ran out of memory to encode .* on another rank"):
        codec.encode(clip(*BIG))


@pytest.mark.parametrize("tiling", [True, False])
def test_tiling_can_be_forced(vae: Any, tiling: bool) -> None:
    codec = in_tiles(vae, StubMemory(0 if not tiling else GB), tiling=tiling)
    codec.decode(codec.encode(clip(*BIG)), 1)
    assert vae.use_tiling == tiling


def test_bf16_weights_take_frames_and_give_float32() -> None:
    codec = Codec(make_vae().to(torch.bfloat16))
    exact = Codec(make_vae())
    frames = clip(5, 32, 48)
    encoded, expected = codec.encode(frames), exact.encode(frames)
    assert encoded.dtype == torch.float32
    assert (encoded - expected).std() < 0.05 * expected.std()
    assert codec.decode(expected, 5).dtype == torch.float32


def test_frames_outside_of_the_range_are_clipped_only_when_they_become_bytes() -> None:
    frames = torch.tensor([-0.5, 0.0, 0.5, 0.999, 1.0, 7.0])
    assert to_uint8(frames).tolist() == [0, 0, 128, 255, 255, 255]
    everything = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(everything / 255), everything)
