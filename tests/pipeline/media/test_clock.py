"""Edits play as long as the frames that they were made from, whatever the header says."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from pipeline.errors import ErrorCode, RowError
from pipeline.media.clock import Clock
from pipeline.media.decoding import Clip, read_clip
from pipeline.media.encoding import write_clip
from tests.drawn_videos import draw, gray_number, grays
from tests.input_rows import row
from tests.mpeg_ts import joined

BROWSER = [12, 59, 98, 109, 148, 176, 221, 263, 286]
"""Milliseconds, of a recording of a web page at 30 frames a second."""
PHONE = [0, 33, 67, 101, 133, 183, 233, 283, 317]
HEVC = {"codec": "libx265", "options": {"x265-params": "log-level=none:pools=1"}}
GIF: dict[str, Any] = {"container": "gif", "codec": "gif", "pix_fmt": "rgb8"}
APNG: dict[str, Any] = {"container": "apng", "codec": "apng", "pix_fmt": "rgb24"}
MJPEG: dict[str, Any] = {"codec": "mjpeg", "pix_fmt": "yuvj420p"}
VP9 = {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}


@dataclass(frozen=True)
class Case:
    """A video of nine frames.

    Args:
        drawing: what `draw` draws.
        fps: the right rate of its clip.
        lasts_s: from the first frame to the last one; None: as the rate has it.
        copies: the file joined to itself so often.
    """

    drawing: dict[str, Any]
    fps: Fraction | float
    lasts_s: float | None = None
    copies: int = field(default=1)


def of_times(times: list[int], **drawing: Any) -> Case:
    lasts = Fraction(times[-1] - times[0], 1000)
    return Case({"times": times, **drawing}, 8 / lasts, float(lasts))


def of_ticks(ticks: list[int], rate: int, **drawing: Any) -> Case:
    lasts = Fraction(ticks[-1] - ticks[0], rate)
    return Case({"ticks": ticks, "rate": rate, **drawing}, 8 / lasts, float(lasts))


MKV, WEBM = {"container": "matroska"}, {"container": "webm", **VP9}
AVI = {"container": "avi", "codec": "mpeg4"}
TS, MPEG4_TS = {"container": "mpegts"}, {"container": "mpegts", "codec": "mpeg4"}
FAST = "A recording of a browser, which declares 1000 frames a second"
CASES: dict[str, list[Case]] = {
    "A header whose rate agrees with the times": [
        Case({}, 8),
        Case({"rate": 30, **MKV}, 30),
        Case({"rate": 60, **MKV}, 60),
        Case({"rate": 24, "container": "flv"}, 24),
        Case({"rate": 24, **TS, **HEVC}, 24),
    ],
    FAST: [of_times(BROWSER, rate=1000, **WEBM), of_times(BROWSER, rate=1000, container="flv")],
    "A rate of 90000/1": [of_times(PHONE, rate=90000, **MKV)],
    "No declared rate": [Case({"rate": 12, **MPEG4_TS}, 12), of_times(PHONE, **TS)],
    "A variable frame rate, as of phones and recordings of screens": [
        of_times(PHONE),
        of_times(PHONE, container="mov", **HEVC),
        of_times([0, 33, 67, 1067, 1100, 1133, 2133, 2167, 5000], **MKV),
    ],
    "An AVI with dropped frames": [
        of_ticks([0, 2, 4, 6, 8, 10, 12, 14, 16], 30, **AVI),
        of_ticks([0, 1, 2, 3, 4, 5, 6, 7, 9], 30, container="avi", **MJPEG),
        of_ticks([0, 1, 2, 3, 6, 7, 8, 9, 10], 25, container="avi"),
    ],
    "A first time that is not 0": [
        of_ticks([24 + n for n in range(9)], 8),
        of_ticks([4000 + n for n in range(9)], 8, **TS),
        of_ticks([n - 3 for n in range(9)], 8, **MKV),
    ],
    "No times: raw H.264, raw MJPEG": [
        Case({"rate": 8, "container": "h264"}, 8),
        Case({"rate": 90000, "container": "h264"}, 25),
        Case({"rate": 25, "container": "mjpeg", **MJPEG}, 25),
        Case({"rate": 10, "container": "mjpeg", **MJPEG}, 25),
    ],
    "A clock that starts anew: joined MPEG-TS, MPEG-PS, Matroska, AVI, GIF, raw H.264": [
        Case(TS, 8, copies=3),
        Case({**TS, **HEVC}, 8, copies=3),
        Case(MPEG4_TS, 8, copies=3),
        Case({"container": "mpeg", "codec": "mpeg2video", "rate": 25}, 25, copies=3),
        Case({**MKV, "rate": 30}, 30, copies=2),
        Case(AVI, 8, copies=3),
        Case({**GIF, "rate": 10}, 10, copies=3),
        Case({"container": "h264"}, 8, copies=3),
    ],
    "A clock that overflows: MPEG-TS, every 26.5 hours": [
        of_times([95_443_200 + 125 * n for n in range(9)], **TS),
    ],
    "A jump: more than 10 s in MPEG-TS, MPEG-PS or Ogg, more than an hour in others": [
        Case({"times": [*range(0, 500, 125), *range(60_000, 60_625, 125)], **TS}, 8),
        Case({"times": [*range(0, 500, 125), *range(9_000_000, 9_000_625, 125)], **MKV}, 8),
    ],
    "A pause of minutes": [of_times([*range(0, 500, 125), *range(300_000, 300_625, 125)], **MKV)],
    "A slide show, one picture in 10 s": [
        of_times([10_000 * n for n in range(9)]),
        of_times([10_000 * n for n in range(9)], **MKV),
    ],
    "A GIF or APNG": [
        of_ticks([0, 5, 9, 20, 25, 30, 50, 60, 70], 100, **GIF),
        Case({"rate": 50, **GIF}, 50),
        Case({"rate": 12, **APNG}, 12),
    ],
    "A GIF or APNG with frames of 0 or 10 ms": [
        Case({"rate": 100, **GIF}, 10),
        Case({"rate": 100, **APNG}, 10),
    ],
}


@row(*CASES)
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name) for name, cases in CASES.items() for case in cases]
)
def test_an_edit_plays_as_long_as_its_frames_do_in_the_source(case: Case) -> None:
    data = draw(grays(9), **case.drawing) * case.copies
    clip = read(data, frames=25)
    kept = [number % 9 for number in range(len(clip.frames))]
    assert len(clip.frames) == {1: 9, 2: 17, 3: 25}[case.copies]
    assert [gray_number(frame) for frame in clip.frames] == kept
    assert clip.fps == pytest.approx(float(case.fps), rel=1e-4)
    assert clip.source_fps == clip.fps
    lasts = (len(kept) - 1) / float(case.fps) if case.lasts_s is None else case.lasts_s
    assert shown_s(edit_of(clip)) == pytest.approx(lasts, abs=0.001, rel=0.001)


def test_a_gif_without_delays_plays_as_in_a_browser() -> None:
    data = bytearray(draw(grays(9), rate=100, **GIF))
    for control in re.finditer(b"\x21\xf9\x04", bytes(data)):
        data[control.start() + 4 : control.start() + 6] = bytes(2)
    assert read(bytes(data)).fps == 10


@row("Joined parts whose times go on after a gap of less than 10 s")
def test_a_gap_between_joined_parts_is_part_of_the_time() -> None:
    parts = [range(start, start + 1125, 125) for start in (1500, 3000)]
    data = joined(*(draw(grays(9), times=list(times), **TS) for times in parts))
    clip = read(data, frames=17)
    assert [gray_number(frame) for frame in clip.frames] == [*range(9), *range(8)]
    assert clip.fps == pytest.approx(16 / (3.000 + 7 * 0.125 - 1.500))


@row("A header whose rate agrees with the times")
def test_a_rate_that_agrees_is_kept_exactly_though_times_are_rounded() -> None:
    film = Fraction(24000, 1001)
    times = [round(1000 * n / film) for n in range(9)]
    clock = Clock([film], tick=Fraction(1, 1000))
    starts = [clock.place(Fraction(t, 1000), Fraction(0), key=True)[0] for t in times]
    assert starts == [Fraction(t, 1000) for t in times]
    for first in range(4):
        for last in range(first + 2, 10):
            assert clock.rate(starts[first:last]) == film


@row("An edit list")
def test_frames_that_an_edit_list_hides_are_not_edited() -> None:
    clip = read(draw(grays(12), times=[125 * n - 250 for n in range(12)]))
    assert [gray_number(frame) for frame in clip.frames] == list(range(2, 11))
    assert (clip.fps, clip.source_frames) == (8, 12)
    later = read(draw(grays(12), times=[125 * n - 250 for n in range(12)]), start_frame=1, frames=5)
    assert [gray_number(frame) for frame in later.frames] == list(range(3, 8))


@row("`start_frame` and `num_frames`")
def test_the_rate_is_that_of_the_frames_that_are_kept() -> None:
    data = draw(grays(20), times=[*range(0, 1000, 100), *range(1000, 6000, 500)], **MKV)
    assert read(data, frames=9).fps == 10
    assert read(data, frames=9, start_frame=10).fps == 2
    assert read(data, frames=5, start_frame=8).fps == pytest.approx(4 / 1.2)


@row("`fps` with a variable rate")
def test_a_rate_takes_the_frames_by_their_times_where_the_header_is_wrong() -> None:
    data = draw(grays(9), rate=1000, times=BROWSER, **WEBM)
    clip = read(data, fps=20)  # ticks at 12, 62, 112, 162, 212, 262, 312 ms
    assert [gray_number(frame) for frame in clip.frames] == [0, 1, 3, 5, 6]
    assert (clip.fps, clip.source_fps) == (20, pytest.approx(8 / 0.274))
    # The last frame lasts as long as the mean, not the declared 1 ms: 308 ms have 13 ticks.
    assert len(read(data, fps=40, frames=25).frames) == 13


def test_a_rate_goes_on_by_time_where_another_file_was_joined() -> None:
    clip = read(draw(grays(9), **TS) * 2, fps=4)
    assert [gray_number(frame) for frame in clip.frames] == [0, 2, 4, 6, 8, 1, 3, 5, 7]


def test_a_pause_is_filled_with_the_frame_before_it() -> None:
    times = [0, 125, 250, 375, 500, 120_000, 120_125, 120_250, 120_375]
    clip = read(draw(grays(9), times=times, **MKV), fps=0.05, frames=5)
    assert [gray_number(frame) for frame in clip.frames] == [0, 4, 4, 4, 5]


def test_the_number_of_frames_of_an_avi_is_not_believed_where_some_were_dropped() -> None:
    drops = draw(grays(20), rate=30, ticks=[2 * n for n in range(20)], **AVI)
    assert read(drops).source_frames is None
    assert read(drops, frames=25).source_frames == 20
    assert read(draw(grays(20), rate=30, **AVI)).source_frames == 20
    assert read(draw(grays(20), times=[n * n for n in range(20)])).source_frames == 20


@row("A single picture")
def test_one_frame_has_the_headers_rate_and_is_too_short() -> None:
    with pytest.raises(RowError, match="has 1 frames") as refused:
        read(draw(grays(1)))
    assert refused.value.code == ErrorCode.VIDEO_TOO_SHORT
    clock = Clock([Fraction(24)], tick=Fraction(1, 1000))
    start, duration = clock.place(Fraction(7), Fraction(0), key=True)
    assert (start, duration, clock.rate([start])) == (7, Fraction(1, 24), 24)


LATE = "Times that repeat or run back a little"


@row(LATE)
@pytest.mark.parametrize(
    ("ticks", "keys", "expected", "rate"),
    [
        ([1, 4, 3, 5, 2, 6], "knnnnn", [1, 4, 4, 5, 5, 6], 8),  # dts in place of times
        ([0, 0, 2, 2, 4, 4], "kkkkkk", [0, 0, 2, 2, 4, 4], 10),
        ([3, 3, 3, 3, 3, 3], "kkkkkk", [3, 3, 3, 3, 3, 3], 8),  # they tell nothing
        ([0, 1, 2, 0, 1, 2], "knnknn", [0, 1, 2, 3, 4, 5], 8),  # joined
        ([0, 1, 2, 2, 3, 4], "knnknn", [0, 1, 2, 2, 3, 4], 10),
        ([50, 51, 52, 3, 4, 5], "knnnnn", [50, 51, 52, 53, 54, 55], 8),  # overflown
        ([0, 1, 2, 1, 4, 5], "knnknn", [0, 1, 2, 3, 4, 5], 8),  # one time is wrong
        ([50, 51, 3, 53, 54, 55], "knnnnn", [50, 51, 52, 53, 54, 55], 8),
        ([50, 51, 3, 56, 57, 58], "knnnnn", [50, 51, 52, 56, 57, 58], 5 * 8 / 8),
        ([0, 1, 2, None, None, 5], "knnnnn", [0, 1, 2, 3, 4, 5], 8),
        ([None] * 6, "knnnnn", [0, 1, 2, 3, 4, 5], 8),
        ([0, 80_001, 80_002, 80_003, 80_004, 80_005], "knnnnn", [0, 1, 2, 3, 4, 5], 8),
    ],
)
def test_frames_are_placed_in_order(
    ticks: list[int | None], keys: str, expected: list[int], rate: int
) -> None:
    tick = Fraction(1, 8)
    clock = Clock([Fraction(8)], tick=tick)
    starts = [
        clock.place(None if time is None else time * tick, tick, key=key == "k")[0]
        for time, key in zip(ticks, keys, strict=True)
    ]
    assert starts == [time * tick for time in expected]
    assert clock.rate(starts) == rate


@row("An AVI with B-frames, whose times are in the order of storage")
@pytest.mark.parametrize("frames", range(9, 33, 4))
def test_an_avi_with_b_frames_keeps_its_rate(frames: int) -> None:
    pictures = [np.roll(grays(40)[n], n, axis=1) for n in range(34)]
    data = draw(pictures, container="avi", rate=25, options={"bf": "3"})
    assert read(data, frames=frames).fps == 25


@row("One frame whose time runs back, as in some VOBs")
def test_a_vob_of_which_a_key_frame_has_an_earlier_time_keeps_its_rate() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), dtype=np.uint8)
    data = draw(noise, container="vob", codec="mpeg2video", rate=25, options={"bf": "2"})
    assert read(data, frames=37).fps == 25


def read(data: bytes, **request: Any) -> Clip:
    request = {"height": 48, "width": 64, "frames": 9, **request}
    return read_clip(io.BytesIO(data), name="drawn", **request)


def edit_of(clip: Clip) -> bytes:
    file = io.BytesIO()
    write_clip(file, clip.frames, fps=clip.fps)
    return file.getvalue()


def shown_s(edit: bytes) -> float:
    """Seconds from the first frame of a file to its last one."""
    with av.open(io.BytesIO(edit), "r") as container:
        times = [frame.time for frame in container.decode(video=0)]
    return float(times[-1] - times[0])
