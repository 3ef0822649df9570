"""The drawn world: scenes stay in the frame, masks say where things are, edits change one thing."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from jobs.demo import world

SEEDS = range(40)


def scene_of(seed: int) -> world.Scene:
    return world.random_scene(np.random.default_rng(seed))


def plain_scene(shape: str = "ring", colour: str = "red", bend: float = 0.0) -> world.Scene:
    path = world.Path((20.0, 30.0), "right", 16.0, bend)
    return world.Scene((world.Object(colour, shape, 8.0, path),), "white")


def test_the_same_seed_draws_the_same_clip() -> None:
    first, again = scene_of(3), scene_of(3)
    assert first == again
    assert np.array_equal(world.draw(first), world.draw(again))
    assert scene_of(4) != first


def test_a_clip_has_the_documented_shape_and_type() -> None:
    scene = scene_of(0)
    frames, masks = world.draw(scene), world.draw_masks(scene)
    assert frames.shape == (world.FRAMES, world.SIZE, world.SIZE, 3)
    assert frames.dtype == np.uint8
    assert masks.shape == (len(scene.objects), world.FRAMES, world.SIZE, world.SIZE)
    assert masks.min() == 0.0
    assert masks.max() == 1.0


@pytest.mark.parametrize("seed", SEEDS)
def test_objects_stay_inside_the_frame_and_apart(seed: int) -> None:
    for shape in world.SHAPES:
        scene = scene_of(seed)
        for index in range(len(scene.objects)):
            scene = world.with_shape(scene, shape, index)
        masks = world.draw_masks(scene)
        border = np.concatenate(
            [masks[..., 0, :], masks[..., -1, :], masks[..., :, 0], masks[..., :, -1]], axis=-1
        )
        assert border.max() < 0.75, "an object is cut by the frame"
        assert masks.sum(axis=0).max() <= 1.0 + 1e-6, "two objects overlap"


@pytest.mark.parametrize("shape", world.SHAPES)
def test_the_centre_of_a_mask_follows_the_path(shape: str) -> None:
    scene = plain_scene(shape, bend=7.0)
    mask = world.draw_masks(scene)[0]
    grid = np.arange(world.SIZE)
    x = (mask.sum(axis=1) * grid).sum(axis=1) / mask.sum(axis=(1, 2))
    y = (mask.sum(axis=2) * grid).sum(axis=1) / mask.sum(axis=(1, 2))
    centres = scene.objects[0].path.centres()
    assert np.allclose(np.stack([x, y], axis=1), centres, atol=0.3)


def test_a_curved_path_bows_and_ends_where_the_straight_one_does() -> None:
    straight = plain_scene().objects[0].path.centres()
    curved = plain_scene(bend=8.0).objects[0].path.centres()
    assert np.allclose(curved[[0, -1]], straight[[0, -1]])
    assert np.abs(curved - straight).max() == pytest.approx(8.0)


def test_edges_are_anti_aliased() -> None:
    mask = world.draw_masks(plain_scene("ring"))[0]
    partial = (mask > 0.05) & (mask < 0.95)
    assert partial.sum(axis=(1, 2)).min() > 20


def test_a_square_is_convex_and_the_others_are_not() -> None:
    for shape, convex in (("square", True), ("ring", False), ("cross", False)):
        inside = world.draw_masks(plain_scene(shape))[0, 0] > 0.5
        y, x = np.nonzero(inside)
        points = np.stack([y, x], axis=1)
        middles = (points[:, None] + points[None]) // 2
        assert bool(inside[middles[..., 0], middles[..., 1]].mean() > 0.99) is convex, shape


def test_shapes_of_one_size_have_about_the_same_area() -> None:
    areas = [world.draw_masks(plain_scene(shape))[0].sum() for shape in world.SHAPES]
    assert max(areas) / min(areas) < 1.1


def test_prompts_say_what_is_drawn() -> None:
    assert world.prompt(plain_scene()) == "a red ring moving right on a white background"
    curved = plain_scene(bend=5.0)
    assert world.prompt(curved) == "a red ring curving right on a white background"
    two = world.Scene((*plain_scene().objects, *plain_scene("cross", "blue").objects), "black")
    assert world.prompt(two) == (
        "a red ring moving right and a blue cross moving right on a black background"
    )


def test_clauses_are_dropped_at_the_asked_rate() -> None:
    scene, rng = plain_scene(), np.random.default_rng(0)
    prompts = [world.random_prompt(scene, rng, drop=0.1) for _ in range(2000)]
    for word in ("red", "ring", "moving", "background"):
        assert np.mean([word in text for text in prompts]) == pytest.approx(0.9, abs=0.03)
    assert world.random_prompt(scene, rng, drop=1.0) == "a thing"


def test_an_edit_changes_one_thing_and_keeps_the_place() -> None:
    scene = scene_of(11)
    recoloured = world.with_colour(scene, "green" if scene.objects[0].colour != "green" else "red")
    assert np.array_equal(world.draw_masks(scene), world.draw_masks(recoloured))
    changed = (world.draw(scene) != world.draw(recoloured)).any(axis=-1)
    assert changed.any()
    assert not changed[world.draw_masks(scene)[0] == 0.0].any()
    reshaped = world.with_shape(scene, "ring" if scene.objects[0].shape != "ring" else "cross")
    assert reshaped.objects[0].path == scene.objects[0].path
    assert world.with_background(scene, "black").objects == scene.objects


@pytest.mark.parametrize("seed", SEEDS)
def test_a_relook_keeps_the_geometry_and_changes_the_look(seed: int) -> None:
    scene = scene_of(seed)
    other = world.random_relook(scene, np.random.default_rng(seed))
    assert other != scene
    assert [one.path for one in other.objects] == [one.path for one in scene.objects]
    assert len({one.colour for one in other.objects}) == len(other.objects)


def test_scenes_are_varied() -> None:
    scenes = [scene_of(seed) for seed in range(300)]
    objects = [one for scene in scenes for one in scene.objects]
    assert {one.colour for one in objects} == set(world.COLOURS)
    assert {one.shape for one in objects} == set(world.SHAPES)
    assert {one.path.heading for one in objects} == set(world.HEADINGS)
    assert {scene.background for scene in scenes} == set(world.BACKGROUNDS)
    assert 0.1 < np.mean([len(scene.objects) == 2 for scene in scenes]) < 0.3
    assert 0.25 < np.mean([one.path.bend != 0.0 for one in objects]) < 0.55


def test_an_unknown_shape_is_refused_by_name() -> None:
    with pytest.raises(KeyError, match="hexagon"):
        world.draw(plain_scene("hexagon"))


def test_drawing_needs_no_torch() -> None:
    code = "import sys, jobs.demo.world, jobs.demo.judge; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
