"""The settings: what is refused as it is made, and the guidance of each step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import JobError
from jobs.spec import parse_job
from pipeline.plan import denoising_steps, injects
from pipeline.settings import (
    EditingSettings,
    Inversion,
    Reconstruction,
    TrajectorySettings,
    VideoSettings,
)

DYNAMIC = Reconstruction(start="noise", dynamic_guidance=True, guidance_steps=(0, 1))


@pytest.mark.parametrize(
    ("make", "field", "wrong", "message"),
    [
        (VideoSettings, "fit", "stretch", "fit is 'stretch'; expected crop or pad"),
        (
            Inversion,
            "method",
            "PEC",
            "method is 'PEC'; expected pec, ddim, fixed_point or script; d",
        ),
        (Inversion, "posterior", "mean", "posterior is 'mean'; expected mode or sample"),
        (Inversion, "steps", "x", "steps is 'x'; expected a whole number from 1 to 1000"),
        (
            Inversion,
            "steps",
            "50",
            "expected a whole number from 1 to 1000; write 50 without quotes",
        ),
        (Inversion, "steps", 0, "steps is 0; expected a whole number from 1 to 1000"),
        (
            Inversion,
            "steps",
            None,
            "steps is null; expected a whole number from 1 to 1000; leave it",
        ),
        (Inversion, "vae_psnr", 1, "vae_psnr is 1; expected true or false"),
        (Reconstruction, "reference", "nul", "expected empty, shared, source, script or none"),
        (
            Reconstruction,
            "start",
            1.5,
            "start is 1.5; expected noise or inverted, or a number above",
        ),
        (
            Reconstruction,
            "guidance_scale",
            math.inf,
            "guidance_scale is inf; expected a number from",
        ),
        (
            Reconstruction,
            "inject_steps",
            (0.5,),
            "inject_steps is [0.5]; expected [first, last]: two",
        ),
        (
            Reconstruction,
            "inject_blocks",
            (-3, 1),
            "inject_blocks is [-3, 1]; expected [first, last]",
        ),
        (Reconstruction, "negative_prompt", None, "negative_prompt is null; expected a text"),
        (
            TrajectorySettings,
            "keep",
            "ever",
            "keep is 'ever'; expected always, until_done or never",
        ),
        (TrajectorySettings, "dtype", "fp8", "dtype is 'fp8'; expected fp16, bf16 or fp32"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_as_in_a_job_file(
    make: Callable[..., Any], field: str, wrong: Any, message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        make(**{field: wrong})
    assert message in str(caught.value)
    section = {
        VideoSettings: "video",
        Inversion: "inversion",
        Reconstruction: "reconstruction",
        TrajectorySettings: "trajectory",
    }[make]
    with pytest.raises(JobError) as refused:
        values = {"manifest": "m", "output": "o", section: {field: wrong}}
        parse_job(values, source="test")
    said = str(caught.value).removeprefix(f"{field} ")
    assert str(refused.value) == f"test: 1 problem\n  {section}.{field}: {said}"


def test_a_setting_of_the_whole_is_refused_too() -> None:
    with pytest.raises(ValueError, match="precision is 'fp8'; expected auto, fp32, fp16 or bf16"):
        EditingSettings(checkpoint="checkpoint", output="output", precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"video is \{'height': 3\}; expected a VideoSettings"):
        EditingSettings(output="output", video={"height": 3})  # type: ignore[arg-type]


@pytest.mark.parametrize("start", ["invert", "0.6", 0, -0.5, 1.01, math.nan, None, True, [0.5]])
def test_a_start_is_one_of_two_names_or_a_fraction(start: Any) -> None:
    with pytest.raises(ValueError, match="expected noise or inverted, or a number above 0 and at"):
        Reconstruction(start=start)


@pytest.mark.parametrize("old", ["null", None])
def test_the_reference_of_the_empty_prompt_may_be_called_as_before(old: Any) -> None:
    assert Reconstruction(reference=old) == Reconstruction(reference="empty") == Reconstruction()


def test_a_location_may_be_a_path() -> None:
    given: Any = {"output": Path("/out"), "checkpoint": Path("/models/5b")}
    assert EditingSettings(**given) == EditingSettings(output="/out", checkpoint="/models/5b")


def test_numbers_and_truths_of_numpy_are_taken_and_shown_as_pythons() -> None:
    truth: Any = np.bool_(True)
    assert Inversion(round_trip=truth).round_trip is True
    with pytest.raises(ValueError, match="round_trip is 1; expected true or false"):
        Inversion(round_trip=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps is 0; expected"):
        Inversion(steps=np.int64(0))  # type: ignore[arg-type]


def test_equal_settings_are_equal_however_they_are_written() -> None:
    plain = Reconstruction(start=1.0, inject_steps=(0.0, 1.0), inject_blocks=(0, 3))
    other: Any = {"start": np.float64(1), "inject_steps": [0, 1], "inject_blocks": [np.int64(0), 3]}
    assert Reconstruction(**other) == plain
    assert json.dumps(asdict(Reconstruction(**other))) == json.dumps(asdict(plain))


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
    return [step.scales[0] for step in denoising_steps(settings, steps, [scale])]
