"""Videos that tests draw for themselves, as the bytes of a file in any container and codec."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
GRAY_STEP = 6


def draw(
    pictures: Iterable[np.ndarray],
    *,
    container: str = "mp4",
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: int = 8,
    times: Sequence[int] | None = None,
    ticks: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    sound: bool = False,
    matrix: Sequence[int] | None = None,
    rotation: tuple[float, bool, bool] | None = None,
    pixel_aspect: Fraction | None = None,
    colorspace: int = Colorspace.ITU601,
    color_range: int = ColorRange.MPEG,
    tags: dict[str, int] | None = None,
) -> bytes:
    """Encodes uint8 `[H, W, 3]` RGB pictures.

    They are shown at `times` in milliseconds, or at `ticks` of the rate, or one each tick.
    """
    file = io.BytesIO()
    steady = {"threads": "1"} | ({"mbtree": "0"} if codec == "libx264" else {})
    with av.open(file, "w", format=container, options=muxer or {}) as output:
        video: Any = output.add_stream(codec, rate=rate, options=steady | (options or {}))
        speech: Any = output.add_stream("aac", rate=48000, layout="mono") if sound else None
        for index, picture in enumerate(pictures):
            if index == 0:
                video.height, video.width = picture.shape[:2]
                video.pix_fmt = pix_fmt
                if times is not None:
                    video.codec_context.time_base = Fraction(1, 1000)
                if pixel_aspect is not None:
                    video.codec_context.sample_aspect_ratio = pixel_aspect
                if matrix is not None:
                    video.set_display_matrix(matrix)
                if rotation is not None:
                    video.set_display_rotation(*rotation)
                for name, value in (tags or {}).items():
                    setattr(video.codec_context, name, value)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format=pix_fmt, dst_colorspace=colorspace, dst_color_range=color_range
            )
            frame.pts = index if times is None else times[index]
            if ticks is not None:
                frame.pts = ticks[index]
            frame.time_base = Fraction(1, rate if times is None else 1000)
            output.mux(video.encode(frame))
        output.mux(video.encode())
        if speech is not None:
            _hum(output, speech)
    return file.getvalue()


def draw_streams(
    *streams: Sequence[np.ndarray],
    container: str = "matroska",
    rate: int = 8,
    dispositions: Sequence[Disposition | None] = (),
    codecs: Sequence[str] = (),
) -> bytes:
    """Several video streams in one file, each with its pictures; None leaves a disposition."""
    file = io.BytesIO()
    muxer = {"default_mode": "passthrough"} if container == "matroska" else {}
    with av.open(file, "w", format=container, options=muxer) as output:
        videos: list[Any] = []
        for index, pictures in enumerate(streams):
            codec = codecs[index] if codecs else "mpeg4"
            video: Any = output.add_stream(codec, rate=rate, options={"threads": "1"})
            video.height, video.width = pictures[0].shape[:2]
            video.pix_fmt = "rgb24" if codec == "png" else "yuv420p"
            if dispositions and dispositions[index] is not None:
                video.disposition = dispositions[index]
            videos.append(video)
        for video, pictures in zip(videos, streams, strict=True):
            for picture in pictures:
                output.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            output.mux(video.encode())
    return file.getvalue()


def draw_sound(*, cover: bool = False) -> bytes:
    """An MP4 without moving pictures, at most with the cover picture of a song."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        sound: Any = output.add_stream("aac", rate=48000, layout="mono")
        if cover:
            picture: Any = output.add_stream("png", rate=1)
            picture.height, picture.width, picture.pix_fmt = 48, 64, "rgb24"
            picture.disposition = Disposition.attached_pic
            output.mux(picture.encode(av.VideoFrame.from_ndarray(quadrants(), format="rgb24")))
            output.mux(picture.encode())
        _hum(output, sound)
    return file.getvalue()


def grays(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Frames that tell their own number: see `gray_number`."""
    levels = [20 + GRAY_STEP * number for number in range(count)]
    return [np.full((height, width, 3), level, np.uint8) for level in levels]


def gray_number(frame: Any) -> int:
    return round((float(np.asarray(frame, np.float64).mean()) - 20) / GRAY_STEP)


def quadrants(height: int = 48, width: int = 64) -> np.ndarray:
    """Red, green / blue, white."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = RED
    picture[: height // 2, width // 2 :] = GREEN
    picture[height // 2 :, : width // 2] = BLUE
    picture[height // 2 :, width // 2 :] = WHITE
    return picture


def waves(count: int, height: int, width: int) -> np.ndarray:
    """uint8 `[count, height, width, 3]`: smooth coloured waves that move."""
    y, x, t = np.meshgrid(
        np.arange(height) / height, np.arange(width) / width, np.arange(count) / 8, indexing="ij"
    )
    channels = [np.sin(2 * np.pi * (x + 0.3 * k * y + 0.4 * t) + k) for k in range(3)]
    return (128 + 90 * np.stack(channels, -1)).astype(np.uint8).transpose(2, 0, 1, 3)


def _hum(output: Any, stream: Any) -> None:
    for index in range(48):
        samples = np.sin(np.arange(1024) * 0.05).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 1024 * index
        output.mux(stream.encode(frame))
    output.mux(stream.encode())
