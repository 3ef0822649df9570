"""Masks: outside an edit is its source, for no forward more, and alone as beside others."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.algorithm.inversion import invert
from pipeline.algorithm.masks import (
    AutoMask,
    GivenMask,
    composite,
    in_pixels,
    otsu,
    place_of_change,
    pooled,
    softened,
)
from pipeline.algorithm.reconstruction import Edited
from pipeline.algorithm.schedule import Schedule
from pipeline.model.scheduler import schedule_from_config, script_schedule
from pipeline.model.transformer import ForwardCounter
from pipeline.plan import auto_mask_levels, highest_stored
from pipeline.settings import Reconstruction, Speed
from tests.named_prompts import Edit, NamedModel, edit_with
from tests.small_models import make_transformer, scheduler

STEPS = 5
EDITS = [Edit("edit 0", guidance_scale=4.0, seed=3), Edit("edit 1", seed=4)]


class Video:
    """A random model with the trajectory of one video."""

    def __init__(self) -> None:
        transformer: Any = make_transformer("5b")
        draw = torch.Generator().manual_seed(1)
        names = ("", "edit 0", "edit 1")
        tokens = transformer.config.max_text_seq_length
        prompts = {name: torch.randn(tokens, 32, generator=draw) for name in names}
        self.model = NamedModel(transformer, prompts)
        self.schedule: Schedule = schedule_from_config(scheduler(), STEPS)
        clean = torch.randn(3, 16, 8, 12, generator=draw)
        self.trajectory = invert(self.model.velocity(), clean, self.schedule)

    def edit(self, edits: list[Edit], how: Reconstruction, *masks: Any) -> tuple[Edited, int]:
        """The edits, and the forwards that they took."""
        self.model.forwards = ForwardCounter()
        edited = edit_with(
            self.model, self.trajectory.__getitem__, edits, self.schedule, how, masks=masks
        )
        return edited, self.model.forwards.total


@pytest.fixture(scope="module")
def video() -> Video:
    return Video()


def half() -> GivenMask:
    kept = torch.zeros(3, 1, 8, 12)
    kept[:, :, :, :6] = 1
    return GivenMask(kept)


def auto(how: Reconstruction) -> AutoMask:
    return AutoMask(auto_mask_levels(how, STEPS))


@pytest.mark.parametrize("start", [0.6, "inverted", "noise"])
def test_outside_of_its_mask_an_edit_is_its_source_and_inside_it_is_not(
    video: Video, start: Any
) -> None:
    how = Reconstruction(start=start)
    edited, forwards = video.edit(EDITS, how, half(), None)
    plain, without = video.edit(EDITS, how)
    clean = video.trajectory[0]
    assert forwards == without
    assert torch.equal(edited.latents[0][..., 6:], clean[..., 6:])
    assert (edited.latents[0][..., :6] != clean[..., :6]).all()
    assert torch.equal(edited.latents[1], plain.latents[1])


def test_a_mask_of_everything_changes_nothing(video: Video) -> None:
    how = Reconstruction()
    edited, _ = video.edit(EDITS[:1], how, GivenMask(torch.ones(3, 1, 8, 12)))
    assert torch.equal(edited.latents, video.edit(EDITS[:1], how)[0].latents)


@pytest.mark.parametrize("reference", ["empty", "shared", "none"])
@pytest.mark.parametrize("step_cache", [0.0, 0.4])
def test_an_automatic_mask_is_the_same_beside_any_others_and_costs_no_forward(
    video: Video, reference: Any, step_cache: float
) -> None:
    how = Reconstruction(reference=reference, start="inverted")
    video.model.speed = Speed(compile=False, step_cache=step_cache, step_cache_steps=(0, 1))
    try:
        alone, beside = auto(how), auto(how)
        one, _ = video.edit(EDITS[:1], how, alone)
        two, forwards = video.edit(EDITS, how, beside, None)
        plain, without = video.edit(EDITS, how)
    finally:
        video.model.speed = Speed(compile=False)
    found = alone.weights()
    assert found is not None
    assert 0 < found.mean() < 1
    assert torch.equal(found, beside.weights())
    torch.testing.assert_close(one.latents[0], two.latents[0])
    outside = (found == 0).expand_as(one.latents[0])
    assert torch.equal(one.latents[0][outside], video.trajectory[0][outside])
    assert torch.equal(two.latents[1], plain.latents[1])
    assert bool(video.model.forwards.skipped) == bool(step_cache)
    assert step_cache or forwards == without


def test_an_automatic_mask_holds_from_the_last_watched_step_on() -> None:
    mask, source = AutoMask(frozenset({4, 5})), torch.zeros(3, 2, 6, 6)
    change = torch.zeros(3, 2, 6, 6)
    change[:, :, 2:4, 2:4] = 1
    x = torch.ones_like(source)
    assert torch.equal(mask.hold(5, x, source, change), x)
    assert mask.weights() is None
    held = mask.hold(4, x, source, change)
    assert held[:, :, 2:4, 2:4].min() == 1
    assert held[:, :, 0].max() == 0
    assert torch.equal(mask.hold(3, x, source, None), held)


def test_the_place_of_a_change_is_found_above_noise_and_its_edges_with_it() -> None:
    size = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0)) * 0.1
    size[:, 4:8, 4:8] += 1
    found = place_of_change(size)[:, 0].bool()
    assert found[:, 4:8, 4:8].all()
    assert not found[:, :3].any()
    assert not found[:, :, 9:].any()


def test_without_a_place_that_stands_out_everything_may_change() -> None:
    assert place_of_change(torch.full((3, 4, 4), 0.5)).all()


@given(
    low=st.lists(st.floats(0, 1), min_size=1, max_size=30),
    high=st.lists(st.floats(10, 11), min_size=1, max_size=30),
)
def test_otsu_parts_two_kinds_that_lie_apart(low: list[float], high: list[float]) -> None:
    threshold = otsu(torch.tensor(low + high, dtype=torch.float64))
    assert max(low) <= threshold < min(high)


@pytest.mark.parametrize("make", [schedule_from_config, script_schedule])
def test_the_velocity_between_two_latents_leads_from_one_to_the_other(make: Any) -> None:
    schedule: Schedule = make(scheduler(), 7)
    x, v = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    for level in range(1, 8):
        reached = schedule.descend(x, v, level)
        torch.testing.assert_close(schedule.along(x, reached, level), v, rtol=1e-3, atol=1e-4)
    alpha = schedule.levels[3].alpha
    clean = schedule.clean(
        math.sqrt(alpha) * x + math.sqrt(1 - alpha) * v,
        math.sqrt(alpha) * v - math.sqrt(1 - alpha) * x,
        3,
    )
    torch.testing.assert_close(clean, x)


def test_a_mask_is_pooled_as_the_vae_sees_frames_and_comes_back_larger() -> None:
    mask = torch.zeros(9, 16, 24)
    mask[0, :8, :4] = 1  # half of a latent of the first frame, which is a latent frame of its own
    mask[0, 8:, :3] = 1  # less than half of the one below
    mask[3:5, :8, 8:16] = 1  # two frames of the first group of four
    mask[6, 15, 23] = 0.5  # of the second group one pixel alone: thin things are not lost
    found = pooled(mask, space=8, time=4)
    expected = torch.zeros(3, 1, 2, 3)
    expected[0, 0, 0, 0] = expected[1, 0, 0, 1] = expected[2, 0, 1, 2] = 1
    assert torch.equal(found, expected)
    padded = pooled(mask, space=8, time=4, multiple=2)
    assert torch.equal(padded, torch.cat([expected[:1], expected]))
    back = in_pixels(padded, 9, space=8, time=4)
    assert back.shape == mask.shape
    assert back[0, :8, :8].min() == 1
    assert back[5:, 8:, 16:].min() == back[1:5, :8, 8:16].min() == 1
    assert back.sum() == 64 + 2 * 4 * 64


def test_growth_reaches_each_side_and_a_feather_falls_evenly_to_nothing() -> None:
    mask = torch.zeros(1, 11, 11, dtype=torch.bool)
    mask[0, 5, 5] = True
    grown = softened(mask, grow=2, feather=0)
    assert grown.sum() == 25
    assert grown[0, 3:8, 3:8].min() == 1
    soft = softened(mask, grow=1, feather=2)
    torch.testing.assert_close(soft[0, 5, 5:], torch.tensor([1, 1, 2 / 3, 1 / 3, 0, 0]))


def test_growth_at_the_border_of_a_frame_stays_inside() -> None:
    mask = torch.zeros(1, 6, 9, dtype=torch.bool)
    mask[0, 0, 8] = True
    grown = softened(mask, grow=2, feather=0)
    assert grown[0, :3, 6:].min() == 1
    assert grown.sum() == 9
    assert softened(torch.ones(1, 6, 9, dtype=torch.bool), grow=20, feather=8).min() == 1


def test_a_composite_has_the_sources_own_pixels_outside_of_the_mask() -> None:
    source = torch.randint(0, 256, (1, 4, 4, 3), generator=torch.Generator().manual_seed(0))
    edit, mask = torch.full((1, 4, 4, 3), 2.0), torch.zeros(1, 4, 4)
    mask[0, 0, 0], mask[0, 0, 1] = 1, 0.5
    made = composite(edit, source.byte(), mask)
    assert made[0, 0, 0].tolist() == [2.0, 2.0, 2.0]
    torch.testing.assert_close(made[0, 0, 1], 1 + source[0, 0, 1] / 510)
    assert torch.equal((made[0, 1:] * 255).round().byte(), source[0, 1:].byte())


@pytest.mark.parametrize("reference", ["empty", "none"])
@pytest.mark.parametrize("start", ["noise", 0.5])
def test_no_masked_edit_reads_above_the_level_where_the_inversion_may_stop(
    video: Video, start: Any, reference: Any
) -> None:
    how, read = Reconstruction(start=start, reference=reference), []

    def fetch(level: int) -> Tensor:
        read.append(level)
        return video.trajectory[level]

    edit_with(
        video.model, fetch, EDITS[:1], video.schedule, how, shape=(3, 16, 8, 12), masks=[half()]
    )
    assert max(read) == highest_stored(how, STEPS, masked=True)


def test_an_automatic_mask_needs_a_start_from_the_trajectory() -> None:
    with pytest.raises(ValueError, match="mask is auto and start is noise: .*give masks"):
        Reconstruction(mask="auto", start="noise")
    Reconstruction(mask="auto", reference="none")  # what it compares with is always there
