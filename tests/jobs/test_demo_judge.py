"""The judge: right on clean clips, and it sees each way in which an edit can be wrong."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.demo import world
from jobs.demo.judge import judge

PATH = world.Path((18.0, 30.0), "right", 20.0, 6.0)
SOURCE = world.Scene((world.Object("red", "square", 8.0, PATH),), "gray")


def test_clean_clips_are_judged_right_98_times_in_100() -> None:
    rng = np.random.default_rng(0)
    right = {"colour": 0, "shape": 0, "background": 0}
    clips = 150
    for _ in range(clips):
        scene = world.random_scene(rng)
        noisy = world.draw(scene) + rng.normal(0.0, 6.0, (world.FRAMES, world.SIZE, world.SIZE, 3))
        verdict = judge(scene, scene, noisy.clip(0, 255).astype(np.uint8))
        right["colour"] += verdict.colour_right
        right["shape"] += verdict.shape_right
        right["background"] += verdict.background_right
        assert verdict.mean_centroid_error_px < 0.5
        assert verdict.iou > 0.9
    assert min(right.values()) >= 0.98 * clips, right


def test_a_perfect_colour_edit_is_right_everywhere() -> None:
    asked = world.with_colour(SOURCE, "blue")
    verdict = judge(SOURCE, asked, world.draw(asked))
    assert verdict.colour_right
    assert verdict.shape_right
    assert verdict.mean_centroid_error_px < 0.2
    assert verdict.background_psnr_db > 45.0


def test_an_edit_that_did_nothing_has_the_wrong_colour_in_the_right_place() -> None:
    verdict = judge(SOURCE, world.with_colour(SOURCE, "blue"), world.draw(SOURCE))
    assert verdict.colour == "red"
    assert not verdict.colour_right
    assert verdict.mean_centroid_error_px < 0.5


@pytest.mark.parametrize("asked", ["ring", "cross"])
def test_a_shape_that_stayed_is_seen(asked: str) -> None:
    verdict = judge(SOURCE, world.with_shape(SOURCE, asked), world.draw(SOURCE))
    assert verdict.shape == "square"
    assert not verdict.shape_right


def test_the_asked_colour_in_another_place_is_wrong_and_its_drift_is_measured() -> None:
    asked = world.with_colour(SOURCE, "blue")
    frames = np.roll(world.draw(asked), 18, axis=1)
    verdict = judge(SOURCE, asked, frames)
    assert not verdict.colour_right
    assert verdict.mean_centroid_error_px == pytest.approx(18.0, abs=0.5)
    assert verdict.iou < 0.05


def test_a_small_drift_is_measured_in_pixels() -> None:
    asked = world.with_colour(SOURCE, "blue")
    verdict = judge(SOURCE, asked, np.roll(world.draw(asked), 3, axis=2))
    assert verdict.centroid_error_px == pytest.approx([3.0] * world.FRAMES, abs=0.3)


def test_a_missing_object_is_not_found() -> None:
    empty = np.empty_like(world.draw(SOURCE))
    empty[:] = world.draw_background("gray").astype(np.uint8)
    verdict = judge(SOURCE, SOURCE, empty)
    assert np.isnan(verdict.centroid_error_px).all()
    assert verdict.mean_centroid_error_px == world.SIZE / 2
    assert verdict.shape == "none"
    assert verdict.iou == 0.0


def test_a_background_that_was_not_changed_is_seen() -> None:
    asked = world.with_background(SOURCE, "striped")
    assert not judge(SOURCE, asked, world.draw(SOURCE)).background_right
    assert judge(SOURCE, asked, world.draw(asked)).background_right


def test_background_noise_has_the_psnr_that_it_should() -> None:
    noise = np.random.default_rng(1).normal(0.0, 8.0, (world.FRAMES, world.SIZE, world.SIZE, 3))
    frames = np.rint(world.draw(SOURCE) + noise).clip(0, 255).astype(np.uint8)
    expected = 20.0 * np.log10(255.0 / 8.0)
    assert judge(SOURCE, SOURCE, frames).background_psnr_db == pytest.approx(expected, abs=0.3)


def test_the_second_object_is_judged_by_its_own_place() -> None:
    below = world.Object("green", "ring", 7.0, world.Path((44.0, 52.0), "left", 20.0))
    scene = world.Scene((*SOURCE.objects, below), "gray")
    asked = world.with_colour(scene, "yellow", index=1)
    assert judge(scene, asked, world.draw(asked), index=1).colour_right
    assert judge(scene, asked, world.draw(scene), index=1).colour == "green"
    assert judge(scene, asked, world.draw(asked), index=0).colour == "red"


def test_frames_of_another_size_are_refused_with_both_sizes() -> None:
    with pytest.raises(ValueError, match=r"\(9, 32, 32, 3\).*\(9, 64, 64, 3\)"):
        judge(SOURCE, SOURCE, np.zeros((9, 32, 32, 3), np.uint8))
