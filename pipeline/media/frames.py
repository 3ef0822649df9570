"""Which frames of a video are edited, and how each is brought to the job's size.

Two decisions, each a function that needs no file (how many there may be: `counts.py`):

- *which*: `resample`, the frame nearest in time to each tick of the job's frame rate;
- *how large*: `fit_frame`, a decoded frame turned upright, scaled without distortion, and cropped
  or padded to RGB of the job's height and width.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Literal, TypeVar, cast

import numpy as np
from av import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

Fit = Literal["crop", "pad"]
T = TypeVar("T")

# Without these swscale rounds coarsely, halves the chroma of RGB, and differs between processors.
EXACT = (
    Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
)


def resample(frames: Iterable[tuple[float, float, T]], fps: float) -> Iterator[T]:
    """The frame nearest in time to each tick of a steady clock that starts with the first frame.

    The ticks end with the last frame, less a tenth of a tick, as containers round times: the
    source's own rate gives back every frame once. A tick halfway between two frames takes the
    earlier one.

    Args:
        frames: (start, duration, frame) in order of presentation, times in seconds; any spacing.
        fps: ticks a second.

    Yields:
        the chosen frames: one object several times where the clock is faster than the source,
        some not at all where it is slower. At most one frame is held back.
    """
    tick = 0
    previous: tuple[float, T] | None = None
    origin = end = 0.0
    for start, duration, frame in frames:
        if previous is None:
            origin = start
        else:
            halfway = (previous[0] + start) / 2
            while origin + tick / fps <= halfway:
                yield previous[1]
                tick += 1
        previous = start, frame
        end = start + duration
    while previous is not None and origin + (tick + 0.1) / fps < end:
        yield previous[1]
        tick += 1


def fit_frame(
    frame: VideoFrame,
    *,
    height: int,
    width: int,
    fit: Fit,
    pixel_aspect: Fraction,
    scaler: VideoReformatter,
) -> np.ndarray:
    """Turns a decoded frame upright and brings it to `height` by `width` without distortion.

    `crop` scales it to cover the target and keeps the middle; `pad` scales it to fit inside and
    puts it in the middle of black. Colour follows the frame's tags (matrix and range). Transparency
    is dropped, HDR is not tone-mapped, interlaced fields are not taken apart.

    Args:
        frame: any size and pixel format, with its display matrix as side data where it has one.
        pixel_aspect: width of a stored pixel over its height (the sample aspect ratio).
        scaler: one for a whole clip, as it keeps its tables between frames.

    Returns:
        uint8 `[height, width, 3]`, RGB.

    Raises:
        ValueError: the frame is so thin that `crop` would keep next to nothing of it.
        av.FFmpegError: swscale cannot convert its pixel format.
    """
    transpose, flip_rows, flip_columns = orientation(frame)
    # Scaling comes first, on the stored picture, so that only the small picture is turned.
    box = (width, height) if transpose else (height, width)
    scaled_height, scaled_width = scaled_size(frame.height, frame.width, pixel_aspect, box, fit)
    if scaled_height * scaled_width > 64 * height * width:
        raise ValueError(
            f"a crop of {frame.width}x{frame.height} to {width}x{height} would keep less than 1/64 "
            "of the picture; use fit: pad"
        )
    scaled = scaler.reformat(
        frame,
        width=scaled_width,
        height=scaled_height,
        format="rgb24",
        src_colorspace=_assumed_colorspace(frame),
        interpolation=Interpolation.LANCZOS | EXACT,
        threads=1,
    )
    pixels = _centred(scaled.to_ndarray(), *box)
    if transpose:
        pixels = pixels.swapaxes(0, 1)
    pixels = pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    return np.ascontiguousarray(pixels)


def orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """How a stored picture is turned upright: (transpose, then flip rows, flip columns).

    The display matrix maps the stored (x, y) to (a x + c y, b x + d y). Cameras write only the
    eight turns and mirrorings; any other angle is taken to the nearest of them.
    """
    side_data = cast("Mapping[str, bytes]", frame.side_data)  # PyAV's stub knows one kind only
    if "DISPLAYMATRIX" not in side_data:
        return False, False, False
    a, b, _, c, d = struct.unpack("=5i", bytes(side_data["DISPLAYMATRIX"])[:20])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, d < 0, a < 0
    return True, b < 0, c < 0


def scaled_size(
    height: int, width: int, pixel_aspect: Fraction, box: tuple[int, int], fit: Fit
) -> tuple[int, int]:
    """Height and width that keep the picture's shape and cover (`crop`) or fit into the box."""
    box_height, box_width = box
    by_height = Fraction(box_height, height)
    by_width = box_width / (width * pixel_aspect)
    scale = max(by_height, by_width) if fit == "crop" else min(by_height, by_width)
    return max(1, round(height * scale)), max(1, round(width * pixel_aspect * scale))


def _centred(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of `[h, w, 3]` pixels, or the pixels in the middle of black, along each side."""
    for axis, size in ((0, height), (1, width)):
        spare = size - pixels.shape[axis]
        if spare < 0:
            start = -spare // 2
            pixels = pixels.take(range(start, start + size), axis)
        elif spare > 0:
            margins = [(0, 0), (0, 0), (0, 0)]
            margins[axis] = (spare // 2, spare - spare // 2)
            pixels = np.pad(pixels, margins)
    return pixels


def _assumed_colorspace(frame: VideoFrame) -> Colorspace | None:
    """The matrix to convert with where the frame names none that swscale knows.

    Players take BT.709 for high definition and BT.601 below; swscale would take BT.601 for all.
    """
    known = {1, 4, 5, 6, 7, 9}  # AVColorSpace: BT.709, FCC, two of BT.601, SMPTE 240M, BT.2020
    if frame.format.is_rgb or frame.colorspace in known:
        return None
    short, long = sorted((frame.height, frame.width))
    return Colorspace.ITU709 if short > 576 or long >= 1280 else Colorspace.ITU601
