"""The levels: whose alphas they are, how many, in which order, and the step between two of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.algorithm.schedule import Schedule, move
from pipeline.errors import UnsupportedCheckpoint
from pipeline.model.scheduler import schedule_from_config, script_schedule
from tests.small_models import scheduler

alphas = st.floats(0, 1)


def sine_and_cosine(alpha: float) -> tuple[float, float]:
    return math.sqrt(1 - alpha), math.sqrt(alpha)


@given(
    steps=st.integers(1, 1000),
    shift=st.sampled_from([1.0, 3.0]),
    spacing=st.sampled_from(["trailing", "linspace", "leading"]),
)
@example(steps=61, shift=1.0, spacing="trailing")  # where rounding yields a 62nd timestep, -1
@example(steps=30, shift=3.0, spacing="trailing")
def test_levels_rise_from_the_clean_latent_whatever_the_number_of_steps(
    steps: int, shift: float, spacing: str
) -> None:
    config = scheduler(snr_shift_scale=shift, timestep_spacing=spacing)
    schedule = schedule_from_config(config, steps)
    assert schedule.steps == steps
    assert schedule.levels[0].alpha == 1.0
    timesteps = [level.timestep for level in schedule.levels[1:]]
    assert timesteps == sorted(set(timesteps))
    assert timesteps[0] >= 0
    values = [level.alpha for level in schedule.levels]
    assert values == sorted(set(values), reverse=True)
    if spacing == "trailing":
        assert (timesteps[-1], values[-1]) == (999, 0.0)


@given(steps=st.integers(1, 1000))
@example(steps=61)
def test_both_ways_of_the_script_pass_the_same_levels(steps: int) -> None:
    schedule = script_schedule(scheduler("2b"), steps)
    assert schedule.steps == len(schedule.climbs) == len(schedule.landings) == steps
    assert schedule.levels == schedule_from_config(scheduler("2b"), steps).levels


@pytest.mark.parametrize("family", ["2b", "5b"])
def test_alphas_are_the_forward_schedulers_own(family: str) -> None:
    config = scheduler(family)
    upstream = CogVideoXDDIMScheduler.from_config(config)
    for level in schedule_from_config(config, 50).levels[1:]:
        assert level.alpha == pytest.approx(
            upstream.alphas_cumprod[level.timestep].item(), abs=1e-12
        )


def test_the_scripts_inverse_levels_of_2b_are_too_clean() -> None:
    schedule = script_schedule(scheduler("2b"), 50)
    reached = [target for _, target in schedule.climbs]
    gaps = [a - level.alpha for a, level in zip(reached, schedule.levels[1:], strict=True)]
    assert max(gaps) == pytest.approx(0.264, abs=0.01)


@pytest.mark.parametrize("family", ["2b", "5b"])
def test_a_checkpoint_saved_with_the_dpm_scheduler_has_the_same_levels(family: str) -> None:
    saved = dict(CogVideoXDPMScheduler.from_config(scheduler(family)).config)
    assert saved["_class_name"] != "CogVideoXDDIMScheduler"
    assert schedule_from_config(saved, 30) == schedule_from_config(scheduler(family), 30)


def test_every_step_down_is_diffusers_ddim_step() -> None:
    config = scheduler("2b")
    upstream = CogVideoXDDIMScheduler.from_config(config)
    upstream.set_timesteps(20)
    schedule = schedule_from_config(config, 20)
    x, v = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    for level in range(20, 0, -1):
        timestep = schedule.levels[level].timestep
        theirs = upstream.step(v, timestep, x).prev_sample
        assert torch.allclose(schedule.descend(x, v, level), theirs, atol=1e-6)


@given(start=alphas, between=alphas, end=alphas)
def test_two_steps_along_one_velocity_are_one_step(
    start: float, between: float, end: float
) -> None:
    signal, noise = torch.randn(2, 5, dtype=torch.float64)

    def at(alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
        sine, cosine = sine_and_cosine(alpha)
        return cosine * signal + sine * noise, cosine * noise - sine * signal

    once = move(*at(start), start, end)
    halfway = move(*at(start), start, between)
    twice = move(halfway, at(between)[1], between, end)
    assert torch.allclose(once, twice, atol=1e-12)
    assert torch.allclose(once, at(end)[0], atol=1e-12)


@pytest.mark.parametrize(("source", "target"), [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)])
def test_a_step_between_the_singular_ends_is_finite(source: float, target: float) -> None:
    assert torch.isfinite(move(torch.ones(2), torch.ones(2), source, target)).all()


def test_clipping_touches_the_signal_and_leaves_the_noise() -> None:
    x, v = torch.tensor([4.0]), torch.tensor([0.0])
    assert move(x, v, 0.64, 1.0, clip=1.0).item() == pytest.approx(1.0)
    assert move(x, v, 0.64, 0.0, clip=1.0).item() == pytest.approx(0.6 * 4.0)


@given(fraction=st.floats(0, 1), steps=st.integers(1, 100))
def test_a_fraction_of_the_levels_is_the_nearest_level_and_never_none(
    fraction: float, steps: int
) -> None:
    level = Schedule(schedule_from_config(scheduler(), steps).levels).level_at(fraction)
    assert 0 <= level <= steps
    assert abs(level - fraction * steps) <= 0.5 or (level == 1 and fraction * steps < 0.5)
    assert (level == 0) == (fraction == 0)


@pytest.mark.parametrize("fraction", [-0.5, 1.5])
def test_a_fraction_outside_of_the_levels_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=str(fraction)):
        schedule_from_config(scheduler(), 10).level_at(fraction)


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_a_number_of_steps_out_of_range_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and 1000, got {steps}"):
        schedule_from_config(scheduler(), steps)


@pytest.mark.parametrize("kind", ["epsilon", "sample", None])
def test_a_model_that_predicts_no_velocity_is_refused(kind: str | None) -> None:
    config: dict[str, Any] = scheduler(prediction_type=kind)
    if kind is None:
        del config["prediction_type"]  # then diffusers' default counts, which is epsilon
    with pytest.raises(UnsupportedCheckpoint, match=kind or "epsilon"):
        schedule_from_config(config, 10)
