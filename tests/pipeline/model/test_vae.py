"""The VAE's conventions: ranges, scaling, draws, padded frames, tiles, and frame counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.model import vae as module
from pipeline.model.vae import Codec, pad_frames, to_uint8
from tests.small_models import HEIGHT, WIDTH, make_vae


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


def test_frames_above_the_native_size_are_tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, frames = make_vae(), clip(1, 96, 160)
    whole = Codec(vae).encode(frames)
    assert not vae.use_tiling
    vae.enable_tiling(48, 80)  # tiles smaller than the frame, as the published VAE's are
    monkeypatch.setattr(module, "TILE_ABOVE_PIXELS", 96 * 160 - 1)
    tiled = Codec(vae).encode(frames)
    assert vae.use_tiling
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
    decoded = Codec(vae).decode(whole, 1)
    assert vae.use_tiling
    assert decoded.shape == (1, 96, 160, 3)
    assert torch.equal(Codec(vae).encode(clip(1)), Codec(make_vae()).encode(clip(1)))
    assert not vae.use_tiling


@pytest.mark.parametrize("tiling", [True, False])
def test_tiling_can_be_forced(vae: Any, tiling: bool) -> None:
    codec = Codec(vae, tiling=tiling)
    codec.decode(codec.encode(clip(1)), 1)
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
