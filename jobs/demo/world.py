"""The drawn world: short clips of coloured shapes that move over plain and textured backgrounds.

The embedded checkpoint is trained on this world and judged by it. A `Scene` says everything about a
clip, so its frames, its prompt and the exact place of each object all follow from one value, and an
edited scene is the same value with an attribute replaced. numpy only, so that a worker can draw
without loading a model.

    scene = random_scene(numpy.random.default_rng(7))
    frames = draw(scene)                 # uint8 [F, 64, 64, 3]
    masks = draw_masks(scene)            # float32 [objects, F, 64, 64], the share covered
    prompt(scene)                        # "a red ring moving right on a white background"
    with_colour(scene, "green")          # the same clip, edited

Positions and sizes are in pixels, x to the right and y down; pixel centres lie at whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

SIZE = 64
FRAMES = 9
FPS = 8

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (30, 170, 60),
    "blue": (40, 70, 225),
    "yellow": (240, 210, 30),
    "purple": (165, 50, 190),
}
SHAPES = ("square", "ring", "cross")
BACKGROUNDS = ("white", "black", "gray", "striped", "checkered")
HEADINGS: dict[str, tuple[float, float]] = {
    "right": (1.0, 0.0),
    "left": (-1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}

# A hard edge costs a small VAE more than the whole background; this is how wide the soft one is.
EDGE_PX = 1.4
# The shapes differ by whole patches of the model, a hole or four missing corners, and not by a thin
# rim: a circle and a square of one area are a fiftieth of a colour apart in the VAE's latents, and
# words for them are not learned in hours; these are a third to a half of a colour apart.
# Half the width of each shape for an object of size 1: near enough in area to replace each other.
RADIUS_OF = {"square": 0.92, "ring": 1.2, "cross": 1.4}
RING_HOLE = 0.5
CROSS_ARM = 0.25
TWO_OBJECTS = 0.15
CURVED = 0.4

Frames = NDArray[np.uint8]
Masks = NDArray[np.float32]


@dataclass(frozen=True)
class Path:
    """A way through the clip: from `start` along `heading` for `length` px, bowed by `bend` px.

    The bow is a parabola across the heading, so a curved path ends where the straight one would.
    """

    start: tuple[float, float]
    heading: str
    length: float
    bend: float = 0.0

    def centres(self, frames: int = FRAMES) -> NDArray[np.float64]:
        """Centre of the object in each frame: [F, 2], x and y in px."""
        along = np.linspace(0.0, 1.0, frames)[:, None]
        heading = np.asarray(HEADINGS[self.heading])
        across = np.asarray([-heading[1], heading[0]])
        bow = 4.0 * along * (1.0 - along) * self.bend
        centres: NDArray[np.float64] = (
            np.asarray(self.start) + heading * along * self.length + across * bow
        )
        return centres


@dataclass(frozen=True)
class Object:
    """One moving thing: a colour, a shape, a size and a path.

    The size is about the radius, in px, of a circle of its area.
    """

    colour: str
    shape: str
    size: float
    path: Path


@dataclass(frozen=True)
class Scene:
    """One clip: the objects, drawn in order, and the background they move over."""

    objects: tuple[Object, ...]
    background: str


def random_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene: one object, or two that never touch, on any background."""
    background = _pick(rng, BACKGROUNDS)
    if rng.random() >= TWO_OBJECTS:
        return Scene((_random_object(rng, 10.0, 13.0),), background)
    while True:
        pair = (_random_object(rng, 7.5, 9.5), _random_object(rng, 7.5, 9.5))
        gap = np.linalg.norm(pair[0].path.centres() - pair[1].path.centres(), axis=1).min()
        scene = Scene(pair, background)
        if gap > 1.45 * (pair[0].size + pair[1].size) and _distinct(scene):
            return scene


def prompt(scene: Scene) -> str:
    """The full prompt of a scene: each object and how it moves, then the background."""
    return compose_prompt(scene)


def random_prompt(scene: Scene, rng: np.random.Generator, drop: float = 0.1) -> str:
    """A prompt with each clause left out with probability `drop`, so that short ones work too."""
    return compose_prompt(
        scene,
        colour=rng.random() >= drop,
        shape=rng.random() >= drop,
        motion=rng.random() >= drop,
        background=rng.random() >= drop,
    )


def compose_prompt(
    scene: Scene,
    *,
    colour: bool = True,
    shape: bool = True,
    motion: bool = True,
    background: bool = True,
) -> str:
    """The prompt of a scene with the asked clauses; without a shape it says "thing"."""
    clauses = []
    for one in scene.objects:
        words = ["a", one.colour if colour else "", one.shape if shape else "thing"]
        if motion:
            words += ["curving" if one.path.bend else "moving", one.path.heading]
        clauses.append(" ".join(word for word in words if word))
    text = " and ".join(clauses)
    return f"{text} on a {scene.background} background" if background else text


def with_colour(scene: Scene, colour: str, index: int = 0) -> Scene:
    """The scene with the colour of one object replaced."""
    return _with_object(scene, index, replace(scene.objects[index], colour=colour))


def with_shape(scene: Scene, shape: str, index: int = 0) -> Scene:
    """The scene with the shape of one object replaced: the same path and about the same area."""
    return _with_object(scene, index, replace(scene.objects[index], shape=shape))


def with_background(scene: Scene, background: str) -> Scene:
    """The scene on another background."""
    return replace(scene, background=background)


def random_relook(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same geometry with new looks: at least one colour, shape or background redrawn."""
    objects = tuple(
        replace(
            one,
            colour=_pick(rng, tuple(COLOURS)) if rng.random() < 0.6 else one.colour,
            shape=_pick(rng, SHAPES) if rng.random() < 0.5 else one.shape,
        )
        for one in scene.objects
    )
    background = _pick(rng, BACKGROUNDS) if rng.random() < 0.35 else scene.background
    changed = Scene(objects, background)
    return changed if changed != scene and _distinct(changed) else random_relook(scene, rng)


def draw(scene: Scene, frames: int = FRAMES, size: int = SIZE) -> Frames:
    """Draw a scene, anti-aliased: uint8 [F, size, size, 3], RGB."""
    canvas = np.broadcast_to(draw_background(scene.background, size), (frames, size, size, 3))
    for one, mask in zip(scene.objects, draw_masks(scene, frames, size), strict=True):
        cover = mask[..., None]
        canvas = canvas * (1.0 - cover) + np.asarray(COLOURS[one.colour], np.float32) * cover
    return np.rint(canvas).astype(np.uint8)


def draw_masks(scene: Scene, frames: int = FRAMES, size: int = SIZE) -> Masks:
    """How much of each pixel each object covers: float32 [objects, F, size, size], from 0 to 1."""
    masks = [draw_object_mask(one, frames, size) for one in scene.objects]
    return np.stack(masks)


def draw_object_mask(one: Object, frames: int = FRAMES, size: int = SIZE) -> Masks:
    """The cover of one object: float32 [F, size, size]."""
    return shape_mask(one.shape, one.size, one.path.centres(frames), size)


def shape_mask(shape: str, size_px: float, centres: NDArray[np.float64], size: int = SIZE) -> Masks:
    """The cover of a shape placed at `centres` [F, 2]: float32 [F, size, size]."""
    grid = np.arange(size, dtype=np.float32)
    x = grid[None, None, :] - centres[:, 0, None, None].astype(np.float32)
    y = grid[None, :, None] - centres[:, 1, None, None].astype(np.float32)
    distance = _distance_px(shape, size_px * RADIUS_OF[shape], x, y)
    return np.clip(0.5 - distance / EDGE_PX, 0.0, 1.0).astype(np.float32)


def draw_background(name: str, size: int = SIZE) -> NDArray[np.float32]:
    """The background without objects: float32 [size, size, 3], 0 to 255."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    light, dark = np.asarray([205, 220, 230]), np.asarray([160, 180, 200])
    if name == "striped":
        weight = 0.5 + 0.5 * np.clip(2.5 * np.sin(2 * np.pi * x / 16.0), -1, 1)
    elif name == "checkered":
        light, dark = np.asarray([120, 110, 95]), np.asarray([85, 75, 65])
        wave = np.sin(2 * np.pi * (x + 0.5) / 32.0) * np.sin(2 * np.pi * (y + 0.5) / 32.0)
        weight = 0.5 + 0.5 * np.clip(6.0 * wave, -1, 1)
    else:
        level = {"white": 245, "black": 15, "gray": 130}[name]
        return np.full((size, size, 3), level, dtype=np.float32)
    field: NDArray[np.float32] = (dark + (light - dark) * weight[..., None]).astype(np.float32)
    return field


def _distance_px(
    shape: str, radius: float, x: NDArray[np.float32], y: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Signed distance to the outline, negative inside; exact near the edge."""
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - np.float32(radius)
    if shape == "ring":
        reach = np.hypot(x, y)
        return np.maximum(reach - radius, RING_HOLE * radius - reach).astype(np.float32)
    if shape != "cross":
        raise ValueError(f"unknown shape {shape!r}: expected one of {', '.join(SHAPES)}")
    # By symmetry the two bars are one: the arm along the longer way from the centre.
    along, across = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(along - radius, across - CROSS_ARM * radius).astype(np.float32)


def _random_object(rng: np.random.Generator, smallest: float, largest: float) -> Object:
    shape = _pick(rng, SHAPES)
    size = rng.uniform(smallest, largest)
    return Object(_pick(rng, tuple(COLOURS)), shape, size, _random_path(rng, size))


def _random_path(rng: np.random.Generator, size: float) -> Path:
    """A path that keeps the widest shape of this size inside the frame."""
    heading = _pick(rng, tuple(HEADINGS))
    length = rng.uniform(12.0, 20.0)
    bend = float(rng.choice([-1.0, 1.0]) * rng.uniform(5.0, 9.0)) if rng.random() < CURVED else 0.0
    margin = 1.4 * size
    offsets = Path((0.0, 0.0), heading, length, bend).centres()
    low = margin - offsets.min(axis=0)
    high = SIZE - 1 - margin - offsets.max(axis=0)
    x, y = rng.uniform(low, high)
    return Path((float(x), float(y)), heading, length, bend)


def _distinct(scene: Scene) -> bool:
    """Whether each object has a colour of its own, so that prompts and judges can name it."""
    return len({one.colour for one in scene.objects}) == len(scene.objects)


def _with_object(scene: Scene, index: int, one: Object) -> Scene:
    objects = list(scene.objects)
    objects[index] = one
    return replace(scene, objects=tuple(objects))


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
