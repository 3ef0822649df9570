"""The certificate's numbers: known values, and what each must tell apart."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.quality.metrics import (
    clipped_fraction,
    flicker,
    luma,
    motion_agreement,
    noise_statistics,
    psnr_db,
    signal_to_error_db,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moving_square(
    frames: int = 9, start: int = 2, speed: int = 2, colour: tuple[float, float, float] = (1, 0, 0)
) -> Tensor:
    """Frames [F, 32, 32, 3] of a square that moves to the right on grey."""
    clip = torch.full((frames, 32, 32, 3), 0.5)
    for i in range(frames):
        clip[i, 10:18, start + speed * i : start + speed * i + 8] = torch.tensor(colour)
    return clip


def test_standard_normal_noise_has_its_statistics() -> None:
    found = noise_statistics(draw(100, 16, 8, 12))
    assert found.mean == pytest.approx(0, abs=0.01)
    assert found.std == pytest.approx(1, abs=0.01)
    assert found.kurtosis == pytest.approx(0, abs=0.05)


def test_noise_that_is_none_is_told_from_noise() -> None:
    assert noise_statistics(3 * draw(50_000) + 2).mean == pytest.approx(2, abs=0.05)
    assert noise_statistics(3 * draw(50_000) + 2).std == pytest.approx(3, abs=0.05)
    assert noise_statistics(draw(50_000).sign()).kurtosis == pytest.approx(-2, abs=1e-3)
    assert noise_statistics(draw(50_000) ** 3).kurtosis > 10
    assert noise_statistics(torch.ones(10)).std == 0


@given(db=st.floats(-20, 100))
def test_an_error_of_a_known_size_has_its_decibels(db: float) -> None:
    signal = draw(1000).double()
    error = draw(1000, seed=1).double()
    error *= signal.norm() / error.norm() * 10 ** (-db / 20)
    assert signal_to_error_db(signal, signal + error) == pytest.approx(db, abs=1e-6)


def test_no_error_is_infinitely_good_and_no_signal_infinitely_bad() -> None:
    x = draw(10)
    assert signal_to_error_db(x, x) == psnr_db(x, x) == math.inf
    assert signal_to_error_db(0 * x, x) < -1000


def test_psnr_of_one_grey_level_off_is_48_db() -> None:
    frames = torch.zeros(2, 4, 4, 3)
    assert psnr_db(frames, frames + 1 / 255) == pytest.approx(48.13, abs=0.01)


def test_only_values_well_outside_of_the_range_count_as_clipped() -> None:
    frames = torch.tensor([-0.5, -0.01, 0.0, 0.5, 1.0, 1.01, 1.5, 2.0])
    assert clipped_fraction(frames) == pytest.approx(3 / 8)
    assert clipped_fraction(frames, margin=0) == pytest.approx(5 / 8)


def test_luma_weighs_the_colours_as_rec_709() -> None:
    assert luma(torch.ones(1, 1, 1, 3)).item() == pytest.approx(1)
    assert luma(torch.eye(3)[None, None]).flatten().tolist() == pytest.approx(
        [0.2126, 0.7152, 0.0722]
    )


def test_flicker_is_what_steady_change_lacks() -> None:
    fade = torch.linspace(0, 1, 9)[:, None, None, None].expand(-1, 4, 4, 3)
    blink = (torch.arange(9) % 2).float()[:, None, None, None].expand(-1, 4, 4, 3)
    assert flicker(fade) == pytest.approx(0, abs=1e-6)
    assert flicker(blink) == pytest.approx(2)
    assert flicker(blink[:2]) == 0


def test_an_edit_that_moves_with_its_source_agrees_with_it() -> None:
    source = moving_square()
    recoloured = moving_square(colour=(0, 0, 1))
    drifted = moving_square(start=3)
    opposite = moving_square(start=22, speed=-2)
    still = moving_square(speed=0)
    assert motion_agreement(source, source) == pytest.approx(1)
    assert motion_agreement(recoloured, source) > 0.95
    assert 0.5 < motion_agreement(drifted, source) < motion_agreement(recoloured, source)
    assert motion_agreement(opposite, source) < 0.4
    assert motion_agreement(still, source) == 0
    assert motion_agreement(source, still) == 0


def test_two_clips_that_stand_still_agree() -> None:
    still = moving_square(speed=0)
    assert motion_agreement(still, moving_square(speed=0, start=9)) == 1
    assert motion_agreement(still[:1], still[:1]) == 1


@given(seed=st.integers(0, 1000), frames=st.integers(1, 6))
def test_agreement_is_a_correlation_whatever_the_clips(seed: int, frames: int) -> None:
    a, b = draw(2, frames, 8, 8, 3, seed=seed).sigmoid()
    found = motion_agreement(a, b)
    assert -1.000001 <= found <= 1.000001
    assert found == pytest.approx(motion_agreement(b, a))
