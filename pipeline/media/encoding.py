"""Edits as files: H.264 in MP4, the same bytes for the same frames."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO, cast

import av
import numpy as np
from av import VideoFrame
from av.container import OutputContainer
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.media.frames import EXACT
from pipeline.storage import keeping, patiently

if TYPE_CHECKING:
    import torch

EDIT_CRF, COMPOSITE_CRF, MASK_CRF = 17, 10, 4
"""Of edits; of composites, whose background would lose more here than by all else (docs/masks.md);
and of masks, whose pixels stay on their side of one half."""
DESCRIPTORS = "/proc/self/fd"
"""Where Linux shows a process the files that it has open, also those without a name."""


def write_clip(
    file: BinaryIO, frames: torch.Tensor | NDArray[np.uint8], *, fps: float, crf: int = EDIT_CRF
) -> None:
    """Writes frames as an MP4 that any player opens: H.264, yuv420p, BT.709, index at the front.

    Equal frames and rate give equal bytes.

    Args:
        file: open for writing; need not be seekable. Not closed.
        frames: uint8 `[F, H, W, 3]`, RGB; H and W even, as yuv420p has one colour for 2x2 pixels.
        fps: frames a second.
        crf: x264's own measure of quality, from 0 on; a smaller one keeps more.

    Raises:
        ValueError: frames or fps are none of the above.
        RowError: the temporary file that it is made in cannot be written.
    """
    _check_frames(frames, fps)
    pixels = frames if isinstance(frames, np.ndarray) else frames.cpu().numpy()
    rate = Fraction(fps).limit_denominator(100_000)
    file.write(patiently(lambda: _encoded(pixels, rate, crf), "an edit", "written"))


def _encoded(pixels: NDArray[np.uint8], rate: Fraction, crf: int) -> bytes:
    # The index can be moved to the front only in a file that FFmpeg may open a second time.
    with keeping("an edit"), _scratch() as (scratch, path):
        _encode(path, pixels, rate, crf)
        return scratch.read()


@contextmanager
def _scratch() -> Iterator[tuple[BinaryIO, str]]:
    """A temporary file, and a path that opens it again. A killed process leaves no file behind."""
    if os.path.isdir(DESCRIPTORS):
        with tempfile.TemporaryFile() as file:
            yield cast(BinaryIO, file), f"{DESCRIPTORS}/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile(suffix=".mp4") as named:
            yield cast(BinaryIO, named), named.name


def _encode(path: str, pixels: NDArray[np.uint8], rate: Fraction, crf: int) -> None:
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(path, "w", format="mp4", options=options) as container:
        stream = _add_stream(container, rate, crf, *pixels.shape[1:3])
        scaler = VideoReformatter()
        for index, picture in enumerate(pixels):
            frame = scaler.reformat(
                VideoFrame.from_ndarray(picture, format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=Interpolation.BICUBIC | EXACT,
                threads=1,
            )
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _check_frames(frames: torch.Tensor | NDArray[np.uint8], fps: float) -> None:
    dtype = str(frames.dtype).removeprefix("torch.")
    if dtype != "uint8" or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(
            f"frames are {dtype} {list(frames.shape)}; expected uint8 [F, H, W, 3], "
            "RGB from 0 to 255"
        )
    count, height, width, _ = frames.shape
    if not count or not height or not width or height % 2 or width % 2:
        raise ValueError(
            f"there are {count} frames of {width}x{height}; expected at least one, of even width "
            "and height: cut off a row or a column"
        )
    if not 0.0001 <= fps <= 1_000_000:
        raise ValueError(f"fps is {fps}; expected 0.0001 to 1000000 frames a second")


def _add_stream(
    container: OutputContainer, rate: Fraction, crf: int, height: int, width: int
) -> VideoStream:
    # For equal bytes: x264 decides differently for each number of threads, and its macroblock tree
    # differs from run to run (measured: 4 different files of 6, with threads=1).
    options = {"crf": str(crf), "preset": "medium", "threads": "1", "mbtree": "0"}
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    stream.color_range = ColorRange.MPEG
    stream.colorspace = Colorspace.ITU709
    stream.color_primaries = ColorPrimaries.BT709
    stream.color_trc = ColorTrc.BT709
    return stream
