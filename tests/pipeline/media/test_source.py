from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from pipeline.errors import ErrorCode, RowError
from pipeline.media.decoding import read_clip
from pipeline.media.encoding import write_clip
from pipeline.media.source import CONTAINERS
from pipeline.settings import Limits
from tests.drawn_videos import draw, draw_sound, grays, waves
from tests.input_rows import row

AVI: dict[str, Any] = {"container": "avi", "codec": "mpeg4"}
WEBM = {"container": "webm", "codec": "libvpx-vp9", "options": {"deadline": "realtime"}}


def test_an_empty_file_is_refused_with_its_code() -> None:
    assert refusal(b"") == ErrorCode.VIDEO_EMPTY


@pytest.mark.parametrize("data", [b"abc", b"not a video\n" * 500, bytes(5000)])
def test_a_file_that_is_no_video_is_refused(data: bytes) -> None:
    assert refusal(data) == ErrorCode.VIDEO_UNREADABLE


@row("A still image; an animated WebP")
def test_a_still_image_is_refused() -> None:
    png = draw(grays(1), container="image2pipe", codec="png", pix_fmt="rgb24")
    assert png.startswith(b"\x89PNG")
    assert refusal(png, "still image") == ErrorCode.VIDEO_UNREADABLE
    gif = draw(grays(1), container="gif", codec="gif", pix_fmt="rgb8")
    assert refusal(gif, "has 1 frames.* at least 5") == ErrorCode.VIDEO_TOO_SHORT


def test_sound_alone_is_refused_even_with_a_cover_picture() -> None:
    assert refusal(draw_sound(), "only audio") == ErrorCode.NO_VIDEO_STREAM
    assert refusal(draw_sound(cover=True), "only audio") == ErrorCode.NO_VIDEO_STREAM


@pytest.mark.parametrize("drawing", [{}, {"container": "matroska"}, AVI, WEBM, {"codec": "mpeg4"}])
@pytest.mark.parametrize("kept", [0.4, 0.8])
def test_a_truncated_file_is_refused_with_its_code(drawing: dict[str, Any], kept: float) -> None:
    data = draw(waves(40, 48, 64), **drawing)
    assert len(read_frames(data, frames=37)) == 37
    assert refusal(data[: int(len(data) * kept)], frames=37) == ErrorCode.VIDEO_TRUNCATED


@pytest.mark.parametrize("kept", [0.5, 0.7, 0.9])
def test_a_truncated_file_with_its_index_at_the_front_is_refused(kept: float) -> None:
    data = written_clip()
    assert refusal(data[: int(len(data) * kept)], frames=37) == ErrorCode.VIDEO_TRUNCATED


def test_a_truncated_file_that_still_has_the_frames_asked_for_is_read() -> None:
    data = written_clip()
    frames = read_frames(data[: int(len(data) * 0.7)], frames=5)
    assert (frames == read_frames(data, frames=5)).all()


def test_a_last_frame_that_is_only_partly_there_is_not_used() -> None:
    data = draw(waves(12, 48, 64), container="avi", codec="mjpeg", pix_fmt="yuvj420p")
    ninth = packets(data)[8]
    assert len(read_frames(data[: ninth.pos + ninth.size + 8])) == 9
    part = data[: ninth.pos + ninth.size * 9 // 10]
    assert refusal(part, "incomplete") == ErrorCode.VIDEO_TRUNCATED


@pytest.mark.parametrize("drawing", [{}, {"container": "matroska"}])
def test_a_file_with_a_hole_is_refused(drawing: dict[str, Any]) -> None:
    data = bytearray(draw(waves(40, 96, 96), **drawing))
    largest = max(packets(bytes(data))[1:], key=lambda packet: packet.size)
    half = largest.size // 2
    data[largest.pos + half : largest.pos + 2 * half] = bytes(half)
    assert refusal(bytes(data), "damaged at frame", frames=37) == ErrorCode.VIDEO_TRUNCATED


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x1aE\xdf\xa3", ErrorCode.VIDEO_TRUNCATED),
        (b"\x1aE\xdf\xa3\x80\x18S\x80g\xff" + bytes(90), ErrorCode.VIDEO_UNREADABLE),
        (b"\x1aE\xdf\xa3\x80\x18S\x80g\xc0" + bytes(90), ErrorCode.VIDEO_UNREADABLE),
        (b"\x1aE\xdf\xa3\x80\x18S\x80g\x50\x00" + bytes(90), ErrorCode.VIDEO_TRUNCATED),
        (b"\0\0\0\1mdat" + (100).to_bytes(8, "big") + bytes(84), ErrorCode.VIDEO_UNREADABLE),
        (b"\0\0\0\1mdat" + (101).to_bytes(8, "big") + bytes(84), ErrorCode.VIDEO_TRUNCATED),
        (b"\0\0\0\0mdat" + bytes(92), ErrorCode.VIDEO_UNREADABLE),
        (b"RIFF" + (100).to_bytes(4, "little") + b"AVI " + bytes(88), ErrorCode.VIDEO_UNREADABLE),
        (b"RIFF" + (101).to_bytes(4, "little") + b"AVI " + bytes(88), ErrorCode.VIDEO_TRUNCATED),
    ],
)
def test_a_file_is_cut_off_when_it_says_that_it_is_longer(data: bytes, code: ErrorCode) -> None:
    assert refusal(data) == code


def test_a_recording_that_never_said_its_length_is_not_called_cut_off() -> None:
    live = draw(grays(12), container="matroska", muxer={"live": "1"})
    assert len(read_frames(live, frames=49)) == 9


def test_too_few_frames_are_refused_with_both_numbers() -> None:
    data = draw(grays(12))
    message = "has 12 frames, which leaves 4 from start_frame 8 on; an edit needs at least 5"
    assert refusal(data, message, start_frame=8) == ErrorCode.VIDEO_TOO_SHORT
    assert refusal(data, "leaves 0", start_frame=12) == ErrorCode.VIDEO_TOO_SHORT
    assert refusal(data, "leaves 0", start_frame=10**9) == ErrorCode.VIDEO_TOO_SHORT
    assert refusal(data, "leaves 3 .* at 2 frames", fps=2) == ErrorCode.VIDEO_TOO_SHORT


@pytest.mark.parametrize(
    "request_",
    [{"frames": 4}, {"frames": -1}, {"start_frame": -1}, {"fps": 0}, {"fps": float("nan")}],
)
def test_a_request_that_makes_no_sense_is_refused(request_: dict[str, Any]) -> None:
    assert refusal(draw(grays(12)), "expected", **request_) == ErrorCode.BAD_VALUE


PLAYLISTS = {
    "list.m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.25,\nsecret.ts\n#EXT-X-ENDLIST\n",
    "list.txt": b"ffconcat version 1.0\nfile secret.ts\n",
}


@row("A playlist or a session description")
@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_cannot_make_ffmpeg_open_another_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret.ts").write_bytes(draw(grays(10), container="mpegts"))
    with av.open(NamedFile(PLAYLISTS[name], name), "r") as followed:
        assert next(followed.decode(video=0)), "left alone, FFmpeg does open it"
    for listed, answer in ((CONTAINERS, "playlist"), (f"{CONTAINERS},hls,concat", "expected MP4")):
        # Even a demuxer that was let in by mistake finds no protocol to open files with.
        monkeypatch.setattr("pipeline.media.source.CONTAINERS", listed)
        file = NamedFile(PLAYLISTS[name], name)
        with pytest.raises(RowError, match=answer) as refused:
            read_clip(file, name=name, height=48, width=64, frames=9)
        assert refused.value.code == ErrorCode.VIDEO_UNREADABLE


@row("A playlist or a session description")
def test_a_session_description_cannot_make_ffmpeg_open_the_network() -> None:
    sdp = (
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    )
    sdp += b"a=rtpmap:96 H264/90000\n"
    assert refusal(sdp, "playlist") == ErrorCode.VIDEO_UNREADABLE


def test_no_listed_container_names_other_files_and_ffmpeg_knows_them_all() -> None:
    listed = set(CONTAINERS.split(","))
    known = {name for entry in av.formats_available for name in entry.split(",")}
    assert listed <= known
    assert not listed & {"hls", "dash", "concat", "sdp", "rtsp", "rtp", "imf", "image2", "lavfi"}


def test_a_picture_too_thin_to_crop_can_still_be_padded() -> None:
    data = draw([np.full((2, 1024, 3), 90, np.uint8)] * 5)
    assert refusal(data, "1024x2 .* use fit: pad") == ErrorCode.VIDEO_UNREADABLE
    assert len(read_frames(data, fit="pad")) == 5


def test_a_picture_too_large_is_refused_from_the_start_or_midway() -> None:
    small, large = (draw(grays(5, *s), container="h264") for s in ((48, 64), (96, 128)))
    assert len(read_frames(small + large)) == 9
    few = Limits(pixels=64 * 48)
    assert refusal(large, "128x96 is too large", limits=few) == ErrorCode.VIDEO_TOO_LARGE
    assert refusal(small + large, "at frame [345]:", limits=few) == ErrorCode.VIDEO_TRUNCATED


def test_trouble_with_the_storage_is_not_blamed_on_the_video() -> None:
    class Unplugged(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 40_000:
                raise ConnectionError("the storage is gone")
            return super().read(size)

    data = draw(np.random.default_rng(0).integers(0, 255, (40, 96, 96, 3), np.uint8), **AVI)
    with pytest.raises(ConnectionError, match="the storage is gone"):
        read_clip(Unplugged(data), name="drawn", height=48, width=64, frames=37)


def test_a_damaged_file_is_read_or_refused_and_never_breaks_anything_else() -> None:
    chance = random.Random(0)
    for drawing in ({}, {"container": "matroska"}, AVI, {"container": "mpegts"}):
        whole = draw(waves(12, 32, 32), **drawing)
        for _ in range(60):
            data = bytearray(whole[: chance.choice((len(whole), chance.randrange(len(whole))))])
            for _ in range(chance.choice((1, 10))):
                if data:
                    data[chance.randrange(len(data))] = chance.randrange(256)
            try:
                assert read_frames(bytes(data)).shape[1:] == (48, 64, 3)
            except RowError as error:
                assert error.message.startswith("drawn: ")


class NamedFile(io.BytesIO):
    """FFmpeg takes the name of a file as a hint of its format."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


def read_frames(data: bytes, **request: Any) -> np.ndarray:
    request = {"height": 48, "width": 64, "frames": 9, **request}
    return read_clip(io.BytesIO(data), name="drawn", **request).frames.numpy()


def refusal(data: bytes, message: str = "", **request: Any) -> ErrorCode:
    with pytest.raises(RowError, match=f"^drawn: .*{message}") as refused:
        read_frames(data, **request)
    return refused.value.code


def packets(data: bytes) -> list[Any]:
    with av.open(io.BytesIO(data), "r") as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def written_clip() -> bytes:
    file = io.BytesIO()
    write_clip(file, torch.from_numpy(waves(40, 48, 64).copy()), fps=8)
    return file.getvalue()
