from __future__ import annotations

import io
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace

from pipeline.media.decoding import Clip, FrameRule, read_clip
from pipeline.media.encoding import write_clip
from tests.drawn_videos import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    draw,
    gray_number,
    grays,
    quadrants,
    waves,
)
from tests.input_rows import row

QUIET = {"x265-params": "log-level=none:pools=1"}
FAST = {"deadline": "realtime", "cpu-used": "8"}
FORMATS = {
    "mp4 with h264": {},
    "mov with h264": {"container": "mov"},
    "mp4 in fragments": {"muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "mp4 with hevc": {"codec": "libx265", "options": QUIET},
    "mp4 with 10-bit hevc": {"codec": "libx265", "options": QUIET, "pix_fmt": "yuv420p10le"},
    "mp4 with mpeg4": {"codec": "mpeg4", "options": {"qmin": "1", "qmax": "3"}},
    "mkv with lossless 16-bit": {"container": "matroska", "codec": "ffv1", "pix_fmt": "rgb48le"},
    "mkv with alpha": {"container": "matroska", "codec": "ffv1", "pix_fmt": "yuva420p"},
    "webm with vp9": {"container": "webm", "codec": "libvpx-vp9", "options": FAST},
    "avi with mjpeg": {"container": "avi", "codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "mov with prores": {"container": "mov", "codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "mpegts with h264": {"container": "mpegts"},
    "mpeg with mpeg2": {"container": "mpeg", "codec": "mpeg2video", "rate": 25},
    "flv with h264": {"container": "flv"},
    "raw h264": {"container": "h264"},
    "gif": {"container": "gif", "codec": "gif", "pix_fmt": "bgr8", "rate": 10},
    "mp4 with sound": {"sound": True},
}


@pytest.mark.parametrize("drawing", FORMATS.values(), ids=FORMATS)
def test_any_container_and_codec_is_read_in_its_colours(drawing: dict[str, Any]) -> None:
    clip = read(draw([quadrants()] * 9, **drawing))
    assert clip.frames.shape == (9, 48, 64, 3) and clip.frames.dtype == torch.uint8
    assert (clip.source_height, clip.source_width) == (48, 64)
    for frame in clip.frames:
        assert_quadrants(frame, [[RED, GREEN], [BLUE, WHITE]], within=12)
    assert clip.fps == clip.source_fps == drawing.get("rate", 8)


@pytest.mark.parametrize("size", [(47, 63), (1, 5), (480, 854), (97, 31)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_odd_sizes_are_fitted_to_the_jobs_size(size: tuple[int, int], fit: Any) -> None:
    picture = np.full((*size, 3), 200, np.uint8)
    data = draw([picture] * 5, codec="ffv1", container="matroska", pix_fmt="yuv444p")
    clip = read(data, height=32, width=48, fit=fit)
    assert clip.frames.shape == (5, 32, 48, 3)
    assert (clip.source_height, clip.source_width) == size
    assert (clip.frames[:, 15:17, 23:25].int() - 200).abs().max() <= 3


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("colorspace", [Colorspace.ITU601, Colorspace.ITU709, Colorspace.BT2020])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p10le"])
def test_the_colour_tags_of_the_source_are_honoured(
    pix_fmt: str, colorspace: Colorspace, full_range: bool
) -> None:
    color_range = ColorRange.JPEG if full_range else ColorRange.MPEG
    matrix = {Colorspace.ITU601: 6, Colorspace.ITU709: 1, Colorspace.BT2020: 9}[colorspace]
    data = draw(
        [quadrants()] * 5,
        pix_fmt=pix_fmt,
        options={"crf": "4"},
        colorspace=colorspace,
        color_range=color_range,
        tags={"colorspace": matrix, "color_range": color_range},
    )
    assert_quadrants(read(data).frames[2], [[RED, GREEN], [BLUE, WHITE]], within=6)


@row("Colours without tags")
def test_untagged_video_is_bt601_when_small_and_bt709_in_high_definition() -> None:
    small = draw([quadrants()] * 5, options={"crf": "4"}, colorspace=Colorspace.ITU601)
    large = draw(
        [quadrants(720, 1280)] * 5,
        options={"crf": "12", "preset": "ultrafast"},
        colorspace=Colorspace.ITU709,
    )
    for data in (small, large):
        assert_quadrants(read(data).frames[0], [[RED, GREEN], [BLUE, WHITE]], within=6)


@pytest.mark.parametrize(
    ("height", "width", "matrix"),
    [
        (400, 1280, Colorspace.ITU709),
        (1280, 400, Colorspace.ITU709),
        (578, 720, Colorspace.ITU709),
        (576, 1278, Colorspace.ITU601),
        (1278, 576, Colorspace.ITU601),
    ],
)
def test_untagged_video_is_of_high_definition_by_either_side(
    height: int, width: int, matrix: Colorspace
) -> None:
    options = {"crf": "12", "preset": "ultrafast"}
    data = draw([quadrants(height, width)] * 5, options=options, colorspace=matrix)
    clip = read(data, fit="pad", height=height // 2, width=width // 2)
    assert_quadrants(clip.frames[0], [[RED, GREEN], [BLUE, WHITE]], within=6)


@row("HDR")
@pytest.mark.parametrize("matrix", [9, 10, 14, 8, 0])
def test_high_dynamic_range_and_rare_tags_do_not_stop_a_video(matrix: int) -> None:
    tags = {"color_trc": 16, "color_primaries": 9, "colorspace": matrix}
    data = draw([quadrants()] * 5, pix_fmt="yuv420p10le", tags=tags)
    assert read(data).frames.shape == (5, 48, 64, 3)


@row("A turned or mirrored picture")
@pytest.mark.parametrize("mirrored", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_turned_or_mirrored_camera_picture_is_put_upright(
    turns: int, mirrored: tuple[bool, bool]
) -> None:
    # numpy turns counter-clockwise, as the rotation counts, and then the mirrors apply.
    expected = np.rot90(quadrants(), turns)
    expected = expected[:: -1 if mirrored[1] else 1, :: -1 if mirrored[0] else 1]
    data = draw([quadrants()] * 5, rotation=(90.0 * turns, *mirrored), options={"crf": "4"})
    height, width = expected.shape[:2]
    clip = read(data, height=height, width=width)
    assert (clip.source_height, clip.source_width) == (height, width)
    assert (clip.frames[2].int() - torch.tensor(expected.copy()).int()).abs().median() <= 3


def test_crop_keeps_the_middle_and_pad_keeps_all_on_black() -> None:
    bands = np.concatenate([np.full((32, 32, 3), c, np.uint8) for c in (RED, GREEN, BLUE)], 1)
    data = draw([bands] * 5, codec="ffv1", container="matroska", pix_fmt="yuv444p")
    cropped = read(data, height=16, width=16).frames[0]
    assert_colour(cropped[:, 1:-1], GREEN)
    padded = read(data, height=96, width=96, fit="pad").frames[0]
    assert padded[:32].max() == 0 and padded[64:].max() == 0
    for column, colour in ((16, RED), (48, GREEN), (80, BLUE)):
        assert_colour(padded[34:62, column - 10 : column + 10], colour)


def test_pixels_that_are_not_square_are_stretched_to_their_shape() -> None:
    bands = np.concatenate([np.full((96, 32, 3), c, np.uint8) for c in (RED, GREEN, BLUE)], 1)
    data = draw([bands] * 5, options={"crf": "4"}, pixel_aspect=Fraction(3))  # shown as 288x96
    assert_colour(read(data, height=32, width=32).frames[0][:, 6:-6], GREEN)
    padded = read(data, height=96, width=96, fit="pad").frames[0]
    assert padded[:30].max() <= 2 and padded[66:].max() <= 2 and padded[34:62].max() > 200


def test_a_shrunk_picture_is_averaged_and_not_sampled() -> None:
    stripes = np.zeros((480, 640, 3), np.uint8)
    stripes[:, ::2] = 255
    data = draw([stripes] * 5, codec="ffv1", container="matroska", pix_fmt="yuv444p")
    inner = read(data).frames[:, :, 4:-4].int()
    assert (inner - 128).abs().max() <= 6


def test_a_stream_that_changes_its_size_midway_is_fitted_frame_by_frame() -> None:
    small, large = (draw([quadrants(*s)] * 5, container="h264") for s in ((48, 64), (96, 128)))
    clip = read(small + large)
    assert clip.frames.shape == (9, 48, 64, 3)
    assert_quadrants(clip.frames[8], [[RED, GREEN], [BLUE, WHITE]], within=12)


def test_without_a_rate_every_frame_is_kept_in_order() -> None:
    clip = read(draw(grays(30), rate=24), frames=100)
    assert [gray_number(frame) for frame in clip.frames] == list(range(29))
    assert clip.fps == clip.source_fps == 24
    assert clip.source_frames == 30


def test_a_broadcast_rate_is_reported_exactly() -> None:
    file = io.BytesIO()
    write_clip(file, torch.zeros(9, 32, 32, 3, dtype=torch.uint8), fps=24000 / 1001)
    assert read(file.getvalue()).fps == 24000 / 1001


@pytest.mark.parametrize(("fps", "expected"), [(4, [0, 2, 4, 6, 8]), (16, [0, 0, 1, 1, 2])])
def test_a_rate_resamples_in_time(fps: float, expected: list[int]) -> None:
    clip = read(draw(grays(9)), fps=fps, frames=5)
    assert [gray_number(frame) for frame in clip.frames] == expected
    assert (clip.fps, clip.source_fps) == (fps, 8)


def test_frames_of_a_variable_rate_are_chosen_by_their_timestamps() -> None:
    # 10 frames in the first second, then one a second.
    times = [*range(0, 1000, 100), 1000, 2000, 3000, 4000]
    data = draw(grays(14), container="matroska", times=times)
    by_time = read(data, fps=2)
    assert [gray_number(frame) for frame in by_time.frames] == [0, 5, 10, 10, 11, 11, 12, 12, 13]
    in_order = read(data, frames=13)
    assert [gray_number(frame) for frame in in_order.frames] == list(range(13))


def test_start_frame_counts_frames_of_the_source() -> None:
    data = draw(grays(30))
    assert [gray_number(f) for f in read(data, start_frame=11, frames=5).frames] == [*range(11, 16)]
    resampled = read(data, start_frame=11, frames=5, fps=4)
    assert [gray_number(frame) for frame in resampled.frames] == [11, 13, 15, 17, 19]


def test_a_shorter_source_gives_the_largest_accepted_count() -> None:
    clip = read(draw(grays(16), container="matroska"), frames=49)
    assert len(clip.frames) == 13
    assert clip.source_frames == 16, "counted, as Matroska does not declare it"
    rule = FrameRule(temporal_compression=8, minimum=9)
    assert len(read(draw(grays(16)), frames=49, rule=rule).frames) == 9


def test_decoding_stops_at_the_last_frame_that_is_needed() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 48, 64, 3), np.uint8)
    data = draw(noise, codec="ffv1", container="matroska")
    file = CountingFile(data)
    clip = read_clip(file, name="long.mkv", height=48, width=64, frames=9)
    assert len(clip.frames) == 9 and clip.source_frames is None
    assert file.furthest < len(data) / 3


def test_writing_and_reading_back_loses_little() -> None:
    frames = torch.from_numpy(waves(17, 96, 144).copy())
    file = io.BytesIO()
    write_clip(file, frames, fps=8)
    back = read(file.getvalue(), height=96, width=144, frames=17).frames
    error = (back.float() - frames.float()).square().mean()
    assert 10 * torch.log10(255**2 / error) > 35


def test_a_written_clip_is_what_any_player_opens() -> None:
    file = io.BytesIO()
    write_clip(file, torch.from_numpy(waves(9, 48, 64).copy()), fps=12.5)
    data = file.getvalue()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.pix_fmt == "yuv420p"
        assert (stream.frames, stream.average_rate) == (9, Fraction(25, 2))
        tags = stream.colorspace, stream.color_range, stream.color_primaries, stream.color_trc
        assert tags == (1, 1, 1, 1)


def test_pure_red_is_written_as_bt709_has_it() -> None:
    frames = torch.zeros(5, 32, 32, 3, dtype=torch.uint8)
    frames[..., 0] = 255
    file = io.BytesIO()
    write_clip(file, frames, fps=8)
    assert (read(file.getvalue()).frames.int() - torch.tensor(RED)).abs().max() <= 6
    with av.open(io.BytesIO(file.getvalue()), "r") as container:
        planes = next(container.decode(video=0)).to_ndarray().reshape(-1)
    luma, chroma = planes[: 32 * 32], planes[32 * 32 :].reshape(2, -1)
    found = [luma.mean(), chroma[0].mean(), chroma[1].mean()]
    assert found == pytest.approx([63, 102, 240], abs=1.5)


def test_equal_frames_give_equal_bytes() -> None:
    # With x264's macroblock tree these 30 files are 9 different ones.
    frames = torch.from_numpy(waves(9, 48, 48).copy())
    frames += torch.randint(0, 20, frames.shape, generator=torch.manual_seed(0)).byte()
    chance = np.random.default_rng(1)
    written, clutter = set(), []
    for _ in range(30):
        # Each run shall find other memory than the one before.
        clutter.append(chance.integers(0, 255, chance.integers(1, 10**6), np.uint8))
        del clutter[:-2]
        file = io.BytesIO()
        write_clip(file, frames, fps=8)
        written.add(file.getvalue())
    assert len(written) == 1


def test_the_bytes_do_not_depend_on_how_many_processors_there_are() -> None:
    file = io.BytesIO()
    write_clip(file, torch.zeros(5, 480, 720, 3, dtype=torch.uint8), fps=8)
    assert b" threads=1 " in file.getvalue()  # x264 notes its options in the stream


def test_frames_of_numpy_are_written_as_those_of_torch() -> None:
    files = io.BytesIO(), io.BytesIO()
    write_clip(files[0], waves(5, 32, 48), fps=8)
    write_clip(files[1], torch.from_numpy(waves(5, 32, 48).copy()), fps=8)
    assert files[0].getvalue() == files[1].getvalue()


def test_a_clip_can_be_written_to_a_file_that_cannot_seek() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation("seek")

    pipe = Pipe()
    write_clip(pipe, torch.zeros(5, 16, 16, 3, dtype=torch.uint8), fps=8)
    assert len(read(pipe.getvalue(), frames=5).frames) == 5


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        (torch.zeros(5, 15, 16, 3, dtype=torch.uint8), 8, "16x15.*even"),
        (torch.zeros(0, 16, 16, 3, dtype=torch.uint8), 8, "0 frames"),
        (torch.zeros(5, 16, 16, 3), 8, "float32.*expected uint8"),
        (torch.zeros(5, 3, 16, 16, dtype=torch.uint8), 8, r"\[F, H, W, 3\]"),
        (torch.zeros(5, 16, 16, 3, dtype=torch.uint8), float("nan"), "fps is nan"),
        (torch.zeros(5, 16, 16, 3, dtype=torch.uint8), 0, "fps is 0"),
    ],
)
def test_what_cannot_be_a_clip_is_not_written(
    frames: torch.Tensor, fps: float, message: str
) -> None:
    file = io.BytesIO()
    with pytest.raises(ValueError, match=message):
        write_clip(file, frames, fps=fps)
    assert not file.getvalue()


class CountingFile(io.BytesIO):
    furthest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if self.tell() < len(self.getbuffer()) - 10_000:  # the index is looked up at the end
            self.furthest = max(self.furthest, self.tell())
        return data


def read(data: bytes, **request: Any) -> Clip:
    file = io.BytesIO(data)
    clip = read_clip(file, name="drawn", **{"height": 48, "width": 64, "frames": 9, **request})
    assert not file.closed
    return clip


def assert_quadrants(frame: torch.Tensor, colours: list[list[Any]], within: int = 6) -> None:
    rows, columns = frame.shape[0] // 4, frame.shape[1] // 4
    for i, line in enumerate(colours):
        for j, colour in enumerate(line):
            centre = frame[(2 * i + 1) * rows, (2 * j + 1) * columns]
            assert_colour(centre, colour, within)


def assert_colour(pixels: torch.Tensor, colour: tuple[int, int, int], within: int = 6) -> None:
    assert (pixels.int() - torch.tensor(colour)).abs().max() <= within, pixels


def test_no_file_has_a_name_while_a_clip_is_encoded_so_that_a_kill_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    class Looking(io.BytesIO):
        def write(self, data: Any) -> int:
            assert not list(tmp_path.iterdir())
            return super().write(data)

    file = Looking()
    write_clip(file, np.zeros((2, 32, 32, 3), np.uint8), fps=8)
    assert file.getvalue()
