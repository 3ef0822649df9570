"""The judge of edits in the drawn world: was the asked change made, and did all else stay in place?

A scene says where each object is and what is behind it, so an edited clip is measured against the
scene that was asked for and needs no model. numpy only.

    asked = with_colour(source, "green")
    verdict = judge(source, asked, edited_frames)
    verdict.colour_right, verdict.shape_right, verdict.mean_centroid_error_px
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.demo import world

# A colour further than this from every name in the palette has no name (RGB, Euclidean, 0 to 441).
NAMED_WITHIN = 95.0
# Frames in which the asked colour must be in place: two of three.
FRAMES_RIGHT = 2.0 / 3.0
# Pixels around an object that belong neither to it nor to the background.
MARGIN_PX = 2
TEMPLATE_SIZES = (0.8, 0.9, 1.0, 1.1, 1.2)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Verdict:
    """What was seen of one object of an edited clip, and of the background.

    `centroid_error_px` has one number a frame, NaN where no object was found. `iou` is the mean
    over frames against the asked object. `background_psnr_db` is over the pixels away from all
    objects, against the asked background.
    """

    colour: str
    colour_right: bool
    shape: str
    shape_right: bool
    background: str
    background_right: bool
    centroid_error_px: tuple[float, ...]
    iou: float
    background_psnr_db: float

    @property
    def mean_centroid_error_px(self) -> float:
        """Mean over frames; a frame without an object counts as half a frame's width."""
        errors = np.asarray(self.centroid_error_px)
        return float(np.where(np.isnan(errors), world.SIZE / 2, errors).mean())


def judge(source: world.Scene, asked: world.Scene, frames: world.Frames, index: int = 0) -> Verdict:
    """Judge object `index` of an edit of `source` into `asked`; `frames` is uint8 [F, H, W, 3].

    Raises ValueError when the frames do not have the world's size.
    """
    expected = (world.FRAMES, world.SIZE, world.SIZE, 3)
    if frames.shape != expected:
        raise ValueError(f"frames of shape {frames.shape}: expected {expected}, uint8 RGB")
    pixels = frames.astype(np.float32)
    source_masks, asked_masks = world.draw_masks(source), world.draw_masks(asked)
    others = np.delete(np.maximum(source_masks, asked_masks), index, axis=0)
    found = find_object(pixels, asked, index, others)
    centres = mask_centres(found)
    place = np.minimum(source_masks[index], asked_masks[index])
    colour = colour_in_place(pixels, place, asked.objects[index].colour)
    shape = recognise_shape(found, centres, asked.objects[index].size)
    away = ~_grown(np.maximum(source_masks, asked_masks).max(axis=0) > 0.0, MARGIN_PX)
    background = nearest_background(pixels, away)
    truth = asked.objects[index].path.centres()
    return Verdict(
        colour=colour,
        colour_right=colour == asked.objects[index].colour,
        shape=shape,
        shape_right=shape == asked.objects[index].shape,
        background=background,
        background_right=background == asked.background,
        centroid_error_px=tuple(float(e) for e in np.linalg.norm(centres - truth, axis=1)),
        iou=_iou(found > 0.5, asked_masks[index] > 0.5),
        background_psnr_db=psnr_db(pixels, world.draw_background(asked.background)[None], away),
    )


def find_object(pixels: Floats, asked: world.Scene, index: int, others: Floats) -> Floats:
    """How much of each pixel is the object, by how far it is from the asked background.

    The colour need not be right: a pixel counts by its distance from the background, half of the
    asked contrast being half a pixel. Places of `others` [objects, F, H, W] do not count.
    Returns float32 [F, H, W], 0 to 1.
    """
    behind = world.draw_background(asked.background)
    contrast = np.asarray(world.COLOURS[asked.objects[index].colour], np.float32) - behind
    distance = np.linalg.norm(pixels - behind, axis=-1)
    cover = np.clip(distance / np.linalg.norm(contrast, axis=-1), 0.0, 1.0)
    # Faint errors all over the frame would pull the centre to the middle.
    cover = np.where(cover < 0.3, 0.0, cover)
    if len(others):
        cover = np.where(_grown(others.max(axis=0) > 0.0, 1), 0.0, cover)
    return cover.astype(np.float32)


def mask_centres(cover: Floats) -> NDArray[np.float64]:
    """Centre of each frame's cover: [F, 2], x and y in px; NaN below ten covered pixels."""
    total = cover.sum(axis=(1, 2), dtype=np.float64)
    grid = np.arange(cover.shape[-1], dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = (cover.sum(axis=1) * grid).sum(axis=1) / total
        y = (cover.sum(axis=2) * grid).sum(axis=1) / total
    centres = np.stack([x, y], axis=1)
    centres[total < 10.0] = np.nan
    return centres


def colour_in_place(pixels: Floats, place: Floats, asked: str) -> str:
    """The name of the colour inside `place` [F, H, W]: the asked one if two of three frames
    have it, or else the one that most frames show; "none" for a colour without a name."""
    seen = [
        name_colour(np.median(frame[inside > 0.9], axis=0))
        for frame, inside in zip(pixels, place, strict=True)
        if (inside > 0.9).any()
    ]
    if not seen:
        return "none"
    if seen.count(asked) >= FRAMES_RIGHT * len(seen):
        return asked
    wrong = [name for name in seen if name != asked]
    return max(sorted(set(wrong)), key=wrong.count)


def name_colour(rgb: Floats) -> str:
    """The nearest colour of the palette, or "none" when that is not near."""
    distances = {
        name: float(np.linalg.norm(rgb - np.asarray(value, np.float32)))
        for name, value in world.COLOURS.items()
    }
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= NAMED_WITHIN else "none"


def recognise_shape(found: Floats, centres: NDArray[np.float64], size_px: float) -> str:
    """The shape whose template, at the found centres and at its best size, fits best; or "none"."""
    seen = ~np.isnan(centres).any(axis=1)
    if not seen.any():
        return "none"
    scores = {
        shape: max(
            _soft_iou(found[seen], world.shape_mask(shape, size_px * scale, centres[seen]))
            for scale in TEMPLATE_SIZES
        )
        for shape in world.SHAPES
    }
    return max(scores, key=scores.__getitem__)


def nearest_background(pixels: Floats, away: NDArray[np.bool_]) -> str:
    """The background that the pixels `away` [F, H, W] from the objects are nearest to."""
    errors = {
        name: float(np.square(pixels - world.draw_background(name))[away].mean())
        for name in world.BACKGROUNDS
    }
    return min(errors, key=errors.__getitem__)


def psnr_db(pixels: Floats, truth: Floats, where: NDArray[np.bool_]) -> float:
    """Peak signal-to-noise ratio in dB over the pixels of `where` [F, H, W]; at most 99."""
    error = float(np.square(pixels - truth)[where].mean()) if where.any() else 0.0
    return min(99.0, 10.0 * float(np.log10(255.0**2 / max(error, 1e-9))))


def _iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    both = (one & other).sum(axis=(1, 2))
    either = (one | other).sum(axis=(1, 2))
    return float((both / np.maximum(either, 1)).mean())


def _soft_iou(one: Floats, other: Floats) -> float:
    both = np.minimum(one, other).sum(axis=(1, 2))
    either = np.maximum(one, other).sum(axis=(1, 2))
    return float((both / np.maximum(either, 1e-6)).mean())


def _grown(mask: NDArray[np.bool_], px: int) -> NDArray[np.bool_]:
    """The mask [F, H, W] grown by `px` pixels in the frame's four directions and its diagonals."""
    height, width = mask.shape[1:]
    padded = np.pad(mask, ((0, 0), (px, px), (px, px)))
    grown = np.zeros_like(mask)
    for dy in range(2 * px + 1):
        for dx in range(2 * px + 1):
            grown |= padded[:, dy : dy + height, dx : dx + width]
    return grown
