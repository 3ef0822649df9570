"""The stream that a player shows is edited, in the shape that its pixels have at each moment."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from av.stream import Disposition

from pipeline.errors import ErrorCode, RowError
from pipeline.media.decoding import Clip, read_clip
from tests.drawn_videos import (
    GREEN,
    draw,
    draw_sound,
    draw_streams,
    gray_number,
    grays,
    quadrants,
)
from tests.input_rows import row
from tests.mpeg_ts import as_programs

NONE, DEFAULT, COVER = Disposition(0), Disposition.default, Disposition.attached_pic
RIGHT = grays(9)


def wrong(height: int, width: int, count: int = 9) -> list[np.ndarray]:
    return [255 - picture for picture in grays(count, height, width)]


SEVERAL = "Several video streams"
CHOICES: dict[str, Callable[[], bytes]] = {
    "the default one": lambda: draw_streams(wrong(32, 32), RIGHT, dispositions=[NONE, DEFAULT]),
    "the default one of a larger": lambda: draw_streams(
        wrong(96, 128), RIGHT, dispositions=[NONE, DEFAULT]
    ),
    "the enabled one of an MP4": lambda: draw_streams(
        wrong(96, 128), RIGHT, container="mp4", dispositions=[NONE, DEFAULT]
    ),
    "the largest without a default": lambda: draw_streams(
        wrong(32, 32), RIGHT, wrong(32, 48), dispositions=[NONE] * 3
    ),
    "the largest of an MPEG-TS": lambda: draw_streams(wrong(32, 32), RIGHT, container="mpegts"),
    "the first of equals": lambda: draw_streams(RIGHT, wrong(48, 64), dispositions=[NONE, NONE]),
    "not the one for those who see little": lambda: draw_streams(
        wrong(96, 128), RIGHT, dispositions=[Disposition.visual_impaired, NONE]
    ),
}


@row(SEVERAL)
@pytest.mark.parametrize("drawn", CHOICES.values(), ids=CHOICES)
def test_the_stream_that_players_show_is_edited(drawn: Callable[[], bytes]) -> None:
    assert numbers(read(drawn())) == list(range(9))


@row("A still picture or cover art beside the video")
@pytest.mark.parametrize("disposition", [None, COVER])
def test_a_still_picture_is_not_the_video(disposition: Disposition | None) -> None:
    data = draw_streams(
        wrong(96, 128, 1),
        RIGHT,
        container="mp4",
        codecs=["png", "mpeg4"],
        dispositions=[disposition, None],
    )
    assert numbers(read(data)) == list(range(9))


@row("Sound alone, with or without cover art")
@pytest.mark.parametrize("cover", [False, True])
def test_sound_alone_is_no_video(cover: bool) -> None:
    with pytest.raises(RowError, match="only audio") as refused:
        read(draw_sound(cover=cover))
    assert refused.value.code == ErrorCode.NO_VIDEO_STREAM


@row("Several programs in an MPEG-TS")
def test_the_program_with_the_largest_picture_is_edited() -> None:
    small = draw(wrong(32, 32), container="mpegts")
    other = {"mpegts_start_pid": "0x200", "mpegts_pmt_start_pid": "0x1100"}
    large = draw(RIGHT, container="mpegts", muxer=other)
    assert numbers(read(as_programs(small, large))) == list(range(9))


def test_a_clip_says_that_it_is_not_the_first_stream_as_it_is() -> None:
    """So that trajectories of frames that an older version chose are not taken for these."""
    assert read(draw(RIGHT)).variant == ""
    assert read(CHOICES["the first of equals"]()).variant == ""
    assert read(CHOICES["the default one"]()).variant == "stream 1"
    joined = draw(RIGHT, container="mpegts") * 2
    assert read(joined, frames=17).variant == ""
    assert read(joined, frames=9, fps=4).variant == "times"
    assert read(draw(RIGHT, container="mpegts"), fps=4, frames=5).variant == ""
    assert read(aspects(Fraction(1), Fraction(2)), frames=17).variant == "aspects"
    assert read(aspects(Fraction(1), Fraction(2)), frames=9).variant == ""


BANDS = np.concatenate([np.full((48, 16, 3), c, np.uint8) for c in (0, 128, 255)], 1)


def aspects(*found: Fraction, container: str = "mpegts") -> bytes:
    """Nine frames of 48x48 pixels of each shape, joined."""
    return b"".join(
        draw([BANDS] * 9, container=container, pixel_aspect=aspect, options={"crf": "4"})
        for aspect in found
    )


def shown_widths(clip: Clip) -> list[int]:
    """Columns of each frame, padded to a square, that are not black: 2/3 of it is not."""
    rows = [frame[frame.shape[0] // 2, :, 0] for frame in clip.frames]
    return [int((line > 64).sum()) for line in rows]


@row("A pixel aspect that changes midway")
@pytest.mark.parametrize("container", ["mpegts", "h264"])
def test_each_frame_has_the_pixel_aspect_of_its_moment(container: str) -> None:
    data = aspects(Fraction(1), Fraction(1, 2), Fraction(2), container=container)
    clip = read(data, height=96, width=96, frames=25, fit="pad")
    expected = [64] * 9 + [32] * 9 + [64] * 7
    assert [round(width / 4) * 4 for width in shown_widths(clip)] == expected
    heights = [int((frame[:, 80, 0] > 128).sum()) for frame in clip.frames]
    assert min(heights[:9]) >= 94
    assert max(heights[18:]) <= 50 and min(heights[18:]) >= 46
    later = read(data, height=96, width=96, frames=5, fit="pad", start_frame=9)
    assert [round(width / 4) * 4 for width in shown_widths(later)] == [32] * 5


@row("Pixels that are not square")
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_the_containers_pixel_aspect_holds_for_all_frames(container: str) -> None:
    bands = np.concatenate([np.full((96, 32, 3), c, np.uint8) for c in (90, GREEN, 90)], 1)
    data = draw([bands] * 9, container=container, pixel_aspect=Fraction(3), options={"crf": "4"})
    cropped = read(data, height=32, width=32).frames[:, :, 6:-6].int()
    assert (cropped - np.array(GREEN)).abs().max() <= 8


@row("Alpha, 10 bits, grey, palettes")
@pytest.mark.parametrize(
    ("container", "codec", "pix_fmt"),
    [
        ("webm", "libvpx-vp9", "yuva420p"),
        ("mov", "prores_ks", "yuva444p10le"),
        ("mov", "qtrle", "argb"),
        ("matroska", "ffv1", "gray"),
        ("matroska", "ffv1", "gray10le"),
        ("mp4", "libx265", "yuv420p10le"),
        ("matroska", "ffv1", "yuv420p12le"),
        ("gif", "gif", "bgr8"),
    ],
)
def test_any_pixel_format_becomes_rgb(container: str, codec: str, pix_fmt: str) -> None:
    quiet = {"x265-params": "log-level=none:pools=1"} if codec == "libx265" else {}
    data = draw(RIGHT, container=container, codec=codec, pix_fmt=pix_fmt, options=quiet)
    assert numbers(read(data)) == list(range(9))


@row("Interlaced video")
def test_the_lines_of_interlaced_video_stay_where_they_are() -> None:
    comb = np.full((48, 64, 3), 60, np.uint8)
    comb[::2] = 200
    data = draw([comb] * 5, options={"x264-params": "interlaced=1", "crf": "4"})
    lines = read(data, frames=5).frames[2, :, 32, 0].int()
    assert (lines[::2] - 200).abs().max() <= 4 and (lines[1::2] - 60).abs().max() <= 4


@row("A size that changes midway")
def test_frames_of_another_size_are_fitted_to_the_job() -> None:
    small, large = (draw([quadrants(*s)] * 9, container="mpegts") for s in ((48, 64), (96, 128)))
    clip = read(small + large, frames=17)
    assert clip.frames.shape == (17, 48, 64, 3)
    assert (clip.frames[16].int() - clip.frames[0].int()).abs().median() <= 3


def numbers(clip: Clip) -> list[int]:
    return [gray_number(frame) for frame in clip.frames]


def read(data: bytes, **request: Any) -> Clip:
    request = {"height": 48, "width": 64, "frames": 9, **request}
    return read_clip(io.BytesIO(data), name="drawn", **request)
