"""Joined recordings are read; where something is missing, the file is refused."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ErrorCode, RowError
from pipeline.media.damage import joined_at
from pipeline.media.decoding import Clip, read_clip
from tests.drawn_videos import draw, gray_number, grays
from tests.input_rows import row
from tests.mpeg_ts import frames_of, joined, packets, with_times, without

TS: dict[str, Any] = {"container": "mpegts"}
QUIET = {"x265-params": "log-level=none:pools=1:bframes=0"}
CODECS: dict[str, dict[str, Any]] = {
    "h264": {"codec": "libx264", "options": {"bf": "0"}},
    "h264 with b-frames": {"codec": "libx264"},
    "hevc": {"codec": "libx265", "options": QUIET},
    "mpeg2": {"codec": "mpeg2video", "rate": 25},
    "mpeg4": {"codec": "mpeg4"},
}
by_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


@row("MPEG-TS joined with cat")
@by_codec
def test_a_joined_mpeg_ts_is_read_to_its_end(codec: dict[str, Any]) -> None:
    clips = [draw(grays(count), **TS, **codec) for count in (9, 7, 10)]
    clip = read(joined(*clips), frames=25)
    expected = [*range(9), *range(7), *range(9)]
    assert [gray_number(frame) for frame in clip.frames] == expected
    later = read(joined(*clips), frames=5, start_frame=9)
    assert [gray_number(frame) for frame in later.frames] == [*range(5)]


def test_a_joined_recording_of_a_blu_ray_is_read_to_its_end() -> None:
    data = joined(draw(grays(9), **TS), draw(grays(8), **TS))
    assert len(read(with_times(data), frames=17).frames) == 17


@row("MPEG-TS joined with cat, of which a part is damaged")
@by_codec
def test_a_join_whose_first_part_ends_within_a_frame_is_refused(codec: dict[str, Any]) -> None:
    first, second = draw(noise(9), **TS, **codec), draw(noise(9), **TS, **codec)
    last = frames_of(first)[-1]
    cut = b"".join(packets(first)[: last[-1]])
    assert refusal(joined(cut, second), "damaged at frame", frames=17) == ErrorCode.VIDEO_TRUNCATED


@row("MPEG-TS joined with cat, of which a part is damaged")
@by_codec
def test_a_join_whose_second_part_starts_between_key_frames_is_refused(
    codec: dict[str, Any],
) -> None:
    first, second = draw(noise(9), **TS, **codec), draw(noise(9), **TS, **codec)
    if codec["codec"] in ("mpeg2video", "mpeg4"):  # noise is all key frames to them
        second = draw(grays(9), **TS, **_with_few_key_frames(codec))
    late = b"".join(packets(second)[frames_of(second)[1][0] :])
    assert refusal(joined(first, late), "damaged at frame", frames=17) == ErrorCode.VIDEO_TRUNCATED


@row("MPEG-TS of which a piece is missing")
@by_codec
@pytest.mark.parametrize("lost", ["the end of a frame", "the middle", "all of it"])
def test_an_mpeg_ts_that_lost_a_piece_is_refused(codec: dict[str, Any], lost: str) -> None:
    data = draw(noise(13), **TS, **_with_few_key_frames(codec))
    # A count of 16 pieces more or less is the same count.
    frame = next(frame for frame in frames_of(data)[5:] if len(frame) % 16)
    gone = {
        "the end of a frame": frame[-1:],
        "the middle": [frame[len(frame) // 2]],
        "all of it": frame,
    }[lost]
    assert refusal(without(data, *gone), "damaged at frame", frames=13) == ErrorCode.VIDEO_TRUNCATED
    assert len(read(data, frames=13).frames) == 13


def test_a_join_is_told_by_the_pieces_themselves() -> None:
    data = draw(noise(9), **TS)
    two = joined(data, data)
    frames, second = frames_of(data), len(packets(data)) + frames_of(data)[0][0]
    start = 188 * frames[7][0]
    assert joined_at(io.BytesIO(two), start) == 188 * second
    assert joined_at(io.BytesIO(data), start) is None, "nothing is out of order"
    assert joined_at(io.BytesIO(without(two, frames[8][-1])), start) is None
    assert joined_at(io.BytesIO(without(two, second)), start) is None
    clock_only = without(
        two, *frames[7][1:], *frames[8]
    )  # its first piece is full, and has the clock's time
    assert joined_at(io.BytesIO(clock_only), start) is None
    broken = bytearray(two)
    broken[188 * frames[8][0] + 1] |= 0x80
    assert joined_at(io.BytesIO(bytes(broken)), start) is None
    assert joined_at(io.BytesIO(bytes(1000)), 0) is None
    file = io.BytesIO(two)
    file.seek(77)
    joined_at(file, start)
    assert file.tell() == 77


@row("MP4, FLV or Matroska joined with cat")
@pytest.mark.parametrize(
    ("container", "parts"), [("mp4", 1), ("mov", 1), ("flv", 1), ("matroska", 2)]
)
def test_only_the_first_parts_of_a_joined_mp4_flv_or_matroska_are_there(
    container: str, parts: int
) -> None:
    clip = read(draw(grays(9), container=container) * 3, frames=25)
    assert [gray_number(frame) for frame in clip.frames] == [*range(9), *range(8)][: 9 * parts]
    assert (clip.fps, clip.source_frames) == (8, 9 * parts)


@row("MPEG-TS joined with cat, of parts with other stream numbers")
def test_parts_with_other_stream_numbers_are_several_streams() -> None:
    other = {"mpegts_start_pid": "0x200", "mpegts_pmt_start_pid": "0x1100"}
    small = draw([255 - picture for picture in grays(9, 32, 32)], **TS)
    clip = read(small + draw(grays(9), **TS, muxer=other), frames=17)
    assert [gray_number(frame) for frame in clip.frames] == list(range(9))


@row("A file that is cut off: MP4, MOV, Matroska, WebM, AVI")
@pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "avi"])
def test_a_file_that_is_shorter_than_it_says_is_refused(container: str) -> None:
    data = draw(noise(13), container=container, codec="mpeg4")
    cut = data[: len(data) * 7 // 10]
    assert refusal(cut, frames=13) == ErrorCode.VIDEO_TRUNCATED


@pytest.mark.parametrize("beyond", [8, None])
def test_an_avi_with_another_count_of_its_bytes_is_whole(beyond: int | None) -> None:
    data = bytearray(draw(grays(9), container="avi", codec="mpeg4"))
    said = 0xFFFFFFFF if beyond is None else len(data) - 8 + beyond
    data[4:8] = said.to_bytes(4, "little")
    assert len(read(bytes(data), frames=13).frames) == 9


@row("A file that is cut off: MPEG-TS, FLV, GIF, raw streams")
def test_a_file_that_does_not_say_its_length_is_a_shorter_video() -> None:
    data = draw(grays(13), **TS, options={"bf": "0"})
    cut = b"".join(packets(data)[: frames_of(data)[9][0]])
    assert [gray_number(frame) for frame in read(cut, frames=13).frames] == list(range(9))


@row("A damaged frame")
@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_a_file_with_a_damaged_frame_is_refused_if_it_is_needed(container: str) -> None:
    data = bytearray(draw(noise(17), container=container, options={"bf": "0"}))
    middle = len(data) * 6 // 10
    data[middle : middle + 600] = bytes(600)
    assert refusal(bytes(data), "damaged at frame", frames=17) == ErrorCode.VIDEO_TRUNCATED
    assert len(read(bytes(data), frames=5).frames) == 5


@row("An MP4 without its index")
def test_an_mp4_without_its_index_is_named() -> None:
    data = draw(grays(9))
    unfinished = data[: data.index(b"moov") - 4]
    assert refusal(unfinished, "without its index") == ErrorCode.VIDEO_UNREADABLE
    assert refusal(unfinished[:-40]) == ErrorCode.VIDEO_TRUNCATED


@row("An empty file")
def test_an_empty_file_is_named() -> None:
    assert refusal(b"", "0 bytes") == ErrorCode.VIDEO_EMPTY


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("clip.mp4", draw(grays(5)))
    return file.getvalue()


PAGE = b"<!DOCTYPE html>\n<html><head><title>403</title></head><body>Expired</body></html>\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@row("A web page, an error message of a storage, an archive, a Git LFS pointer")
@pytest.mark.parametrize(
    ("data", "what"),
    [
        (PAGE, "a web page .has the link to the video expired"),
        (b"\xef\xbb\xbf\n<HTML>" + bytes(99), "a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
        (b'{"message": "not found"}', "JSON"),
        (zipped(), "a ZIP archive .unpack it"),
        (b"\x1f\x8b\x08" + bytes(99), "a gzip archive"),
        (LFS, "a Git LFS pointer .run git lfs pull"),
        (b"abc\n" * 40, "one of a kind that FFmpeg does not know"),
    ],
)
def test_a_file_that_is_something_else_is_named(data: bytes, what: str) -> None:
    assert refusal(data, f"not a video file, but {what}") == ErrorCode.VIDEO_UNREADABLE


@row("A still image; an animated WebP")
def test_an_animated_webp_is_refused() -> None:
    webp = draw(grays(9), container="webp", codec="libwebp_anim")
    assert refusal(webp, "still image") == ErrorCode.VIDEO_UNREADABLE


def noise(count: int) -> list[np.ndarray]:
    chance = np.random.default_rng(0)
    return list(chance.integers(0, 255, (count, 48, 56, 3), np.uint8))


def _with_few_key_frames(codec: dict[str, Any]) -> dict[str, Any]:
    """Without the key frames that encoders set where the scene changes."""
    steady = {"g": "300", "sc_threshold": "1000000000"}
    return codec if codec["codec"] == "libx265" else codec | {"options": steady}


def read(data: bytes, **request: Any) -> Clip:
    request = {"height": 48, "width": 64, "frames": 9, **request}
    return read_clip(io.BytesIO(data), name="drawn", **request)


def refusal(data: bytes, message: str = "", **request: Any) -> ErrorCode:
    with pytest.raises(RowError, match=f"^drawn: .*{message}") as refused:
        read(data, **request)
    return refused.value.code
