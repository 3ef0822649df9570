"""The settings: what is refused as it is made, and the guidance of each step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.algorithm.schedule import Schedule
from pipeline.model.scheduler import schedule_from_config
from pipeline.plan import denoising_steps, injects
from pipeline.settings import (
    EditingSettings,
    Inversion,
    Reconstruction,
    TrajectorySettings,
    VideoSettings,
)
from tests.small_models import scheduler

DYNAMIC = Reconstruction(start="noise", dynamic_guidance=True, guidance_steps=(0, 1))


@pytest.mark.parametrize(
    ("make", "field", "wrong", "known"),
    [
        (VideoSettings, "fit", "stretch", "crop, pad"),
        (Inversion, "method", "PEC", "pec, ddim, fixed_point, script"),
        (Inversion, "posterior", "mean", "mode, sample"),
        (Reconstruction, "reference", "nul", "null, shared, source, script, none"),
        (TrajectorySettings, "keep", "ever", "always, until_done, never"),
        (TrajectorySettings, "dtype", "fp8", "fp16, bf16, fp32"),
    ],
)
def test_a_name_that_is_not_known_is_refused_with_those_that_are(
    make: Callable[..., Any], field: str, wrong: str, known: str
) -> None:
    with pytest.raises(ValueError, match=f"{field} is '{wrong}'; known are {known}"):
        make(**{field: wrong})


def test_a_precision_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="precision is 'fp8'; known are auto, fp32, fp16, bf16"):
        EditingSettings(checkpoint="checkpoint", output="output", precision="fp8")  # type: ignore[arg-type]


@pytest.mark.parametrize("start", ["invert", "0.6", 0, -0.5, 1.01, math.nan])
def test_a_start_is_one_of_two_names_or_a_fraction(start: Any) -> None:
    with pytest.raises(ValueError, match=rf"start is {start!r}; expected noise or inverted, or"):
        Reconstruction(start=start)


@pytest.mark.parametrize("start", ["noise", "inverted", 1, 1.0, 0.001])
def test_every_start_that_the_settings_tell_of_is_taken(start: Any) -> None:
    assert Reconstruction(start=start).start == start


@given(top=st.integers(1, 100), cut=st.floats(0, 1))
def test_two_windows_that_touch_share_the_denoising_steps(top: int, cut: float) -> None:
    before, after = (Reconstruction(inject_steps=window) for window in ((0, cut), (cut, 1)))
    for level in range(top, 0, -1):
        assert injects(before, top, level) != injects(after, top, level)


def test_dynamic_guidance_needs_the_last_steps() -> None:
    with pytest.raises(ValueError, match=r"guidance_steps is \[0.0, 0.4\]; make it \[0, 1\]"):
        Reconstruction(dynamic_guidance=True)


@given(steps=st.integers(1, 100), scale=st.floats(1, 20, exclude_min=True))
def test_dynamic_guidance_grows_from_1_towards_1_and_the_scale(steps: int, scale: float) -> None:
    scales = guidance_of_steps(DYNAMIC, steps, scale)
    assert scales[0] == 1
    assert scales == sorted(scales)
    assert scales[-1] <= 1 + scale
    # diffusers' formula, with the number of the step in the place of `num_steps - timestep`
    for i, ours in enumerate(scales):
        assert ours == pytest.approx(1 + scale * (1 - math.cos(math.pi * (i / steps) ** 5)) / 2)


@given(steps=st.integers(1, 100), scale=st.floats(0, 1))
def test_dynamic_guidance_leaves_an_edit_without_guidance_as_it_is(
    steps: int, scale: float
) -> None:
    """diffusers decides by the scale that was asked for whether there is a negative half."""
    scales = guidance_of_steps(DYNAMIC, steps, scale)
    assert scales == [scale] * steps


def guidance_of_steps(settings: Reconstruction, steps: int, scale: float) -> list[float]:
    schedule = Schedule((schedule_from_config(scheduler(), 1).levels[0],) * (steps + 1))
    return [step.scales[0] for step in denoising_steps(settings, schedule, [scale])]
