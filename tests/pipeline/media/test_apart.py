"""Videos decoded in a process of their own: the same clips, and what a crafted file cannot do."""

from __future__ import annotations

import io
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import psutil
import pytest
import torch

from pipeline.errors import ErrorCode, RowError
from pipeline.media import apart
from pipeline.media.apart import clip_frames_apart, read_clip_apart
from pipeline.media.decoding import Clip, read_clip
from pipeline.settings import Limits
from pipeline.storage import local_copy
from tests.drawn_videos import draw, grays
from tests.input_rows import row

VIDEO = draw(grays(20))
CLIP = {"name": "drawn", "height": 48, "width": 64, "frames": 9}


@pytest.fixture(autouse=True, scope="module")
def none_is_left() -> Iterator[None]:
    yield
    while apart._Decoder._idle:
        apart._Decoder._idle.pop().end()
    assert decoders() == []


def test_a_clip_is_the_same_as_one_decoded_in_this_process() -> None:
    ours, theirs = read_clip(io.BytesIO(VIDEO), start_frame=3, **CLIP), read(VIDEO, start_frame=3)
    assert torch.equal(ours.frames, theirs.frames)
    assert vars(ours) | {"frames": None} == vars(theirs) | {"frames": None}


def test_what_a_file_lacks_is_said_as_in_this_process() -> None:
    for data in (b"no video", VIDEO[:-400], VIDEO[:100]):
        with pytest.raises(RowError) as ours:
            read_clip(io.BytesIO(data), **CLIP)
        assert refusal(data) == (ours.value.code, ours.value.message.removeprefix("drawn: "))


def test_the_frames_of_a_clip_are_counted_without_its_pictures() -> None:
    request = {"name": "drawn", "frames": 49}
    with stored(VIDEO) as file:
        assert clip_frames_apart(file, **request) == 17
        assert clip_frames_apart(file, **request | {"start_frame": 9}) == 9
    with stored(VIDEO[:-400]) as file, pytest.raises(RowError, match="drawn: ") as refused:
        clip_frames_apart(file, **request)
    assert refused.value.code == refusal(VIDEO[:-400])[0]


def test_one_process_decodes_file_after_file() -> None:
    read(VIDEO)
    before = decoders()
    refusal(b"no video")
    read(VIDEO)
    assert decoders() == before


def test_a_small_file_cannot_take_much_memory() -> None:
    """An MP4 of 1.5 kB whose table says that it has 80 million frames: FFmpeg takes 2.9 GB."""
    bomb, limits = endless_mp4(80_000_000), Limits(memory_gb=0.5)
    code, _ = refusal(bomb, limits=limits)
    assert code in (ErrorCode.VIDEO_UNREADABLE, ErrorCode.VIDEO_TOO_LARGE)
    assert peak_kb(bomb, limits) < 800_000
    assert len(read(VIDEO, limits=limits).frames) == 9


@row("Decoding that takes more memory than `limits.memory_gb` (4 GB) and the clip itself")
def test_a_picture_that_takes_more_memory_than_the_limit_is_too_large() -> None:
    large = np.zeros((8192, 8192, 3), np.uint8)
    data = draw([large], container="gif", codec="gif", pix_fmt="rgb8")
    assert len(data) < 100_000
    code, message = refusal(data, limits=Limits(memory_gb=0.2))
    assert code == ErrorCode.VIDEO_TOO_LARGE
    assert message.startswith("decoding it takes more than 0.2 GB of memory, or it has")


@row(
    "A picture of more pixels, as it is stored, than `limits.pixels` (67,108,864)",
    "More frames up to the last one that is needed than `limits.frames` (10,000,000)",
)
@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(pixels=1000), "its picture of 64x48 is too large"),
        (Limits(frames=6), "6 frames were decoded, and the edit needs more"),
    ],
)
def test_a_limit_refuses_what_is_above_it(limits: Limits, message: str) -> None:
    code, text = refusal(VIDEO, limits=limits)
    assert (code, text[: len(message)]) == (ErrorCode.VIDEO_TOO_LARGE, message)


def test_a_file_of_very_many_streams_is_refused() -> None:
    assert refusal(endless_mp4(1, tracks=400))[0] == ErrorCode.VIDEO_TOO_LARGE


@row("A file larger than `limits.file_gb` (50 GB)")
def test_of_a_file_above_the_limit_nothing_more_is_copied(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(VIDEO)
    with pytest.raises(RowError) as caught, local_copy(f"{tmp_path}/a.mp4", most_bytes=1000):
        pass
    assert caught.value.code == ErrorCode.VIDEO_TOO_LARGE
    assert "expected at most 1e-06 GB" in caught.value.message
    with local_copy(f"{tmp_path}/a.mp4", most_bytes=len(VIDEO)) as (file, _):
        assert file.read() == VIDEO


@row("A pipe, a socket or a device")
def test_a_file_that_may_never_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for uri in (f"{tmp_path}/pipe", "/dev/zero"):
        with pytest.raises(RowError) as caught, local_copy(uri):
            pass
        assert caught.value.code == ErrorCode.VIDEO_UNREADABLE


@row("More than 100 streams")
def test_a_file_of_many_streams_is_too_large() -> None:
    code, message = refusal(endless_mp4(1, tracks=400))
    assert code == ErrorCode.VIDEO_TOO_LARGE
    assert "more than 100 streams" in message


def test_a_decoder_that_was_killed_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a node that is short of memory, with a request under way."""
    read(VIDEO)
    (decoder,) = decoders()
    os.kill(decoder, signal.SIGSTOP)
    sent = socket.send_fds

    def send(*arguments: Any) -> int:
        count = sent(*arguments)
        with suppress(ProcessLookupError):
            os.kill(decoder, signal.SIGKILL)
        return count

    monkeypatch.setattr(socket, "send_fds", send)
    assert len(read(VIDEO).frames) == 9
    assert decoder not in decoders()


@row("A file that ends the process that decodes it")
def test_a_file_that_ends_its_decoder_costs_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = "import os, socket; s = socket.socket(fileno=int(os.environ['{}'])); s.recv(8); {}"
    die = ends.format(apart.CHANNEL, "os.kill(os.getpid(), 11)")
    spawn = subprocess.Popen
    while apart._Decoder._idle:
        apart._Decoder._idle.pop().end()
    with monkeypatch.context() as patched:
        patched.setattr(
            apart.subprocess, "Popen", lambda _, **more: spawn([sys.executable, "-c", die], **more)
        )
        code, message = refusal(VIDEO)
    assert code == ErrorCode.VIDEO_UNREADABLE
    assert "ends the process that does it (signal SIGSEGV), 2 times" in message
    assert len(read(VIDEO).frames) == 9


@row("Decoding that gives no frame for `limits.decode_stall_s` (120 s)")
def test_a_decoder_that_is_stopped_costs_its_file_and_the_next_one_has_another() -> None:
    read(VIDEO)
    (decoder,) = decoders()
    os.kill(decoder, signal.SIGSTOP)
    before = time.monotonic()
    code, message = refusal(VIDEO, limits=Limits(decode_stall_s=1))
    assert time.monotonic() - before < 10
    assert code == ErrorCode.VIDEO_UNREADABLE
    assert message == (
        "its decoding gave no frame for 1 s and was ended; convert it anew, as with ffmpeg -i, or "
        "set limits.decode_stall_s higher"
    )
    assert not psutil.pid_exists(decoder)
    assert len(read(VIDEO).frames) == 9


@pytest.mark.parametrize(("frames", "ends"), [("0", True), ("n", False)])
def test_frames_are_progress_and_reads_alone_are_none(
    monkeypatch: pytest.MonkeyPatch, frames: str, ends: bool
) -> None:
    """Stands in for a decoder that reads for 3 s, and then refuses the file."""
    reads = (
        "import os, socket, time\n"
        "from pipeline.media.apart import HEAD\n"
        f"s = socket.socket(fileno=int(os.environ['{apart.CHANNEL}']))\n"
        "for n in range(1, 31):\n"
        f"    s.sendall(HEAD.pack(b'p', {frames}))\n"
        "    time.sleep(0.1)\n"
        'answer = b\'{"code": "video_empty", "message": "drawn: read"}\'\n'
        "s.sendall(HEAD.pack(b'r', len(answer)) + answer)\n"
        "s.recv(1000)\n"
        "s.recv(1000)\n"
    )
    spawn = partial(subprocess.Popen, [sys.executable, "-c", reads])
    heard: list[None] = []
    while apart._Decoder._idle:
        apart._Decoder._idle.pop().end()
    with monkeypatch.context() as patched:
        patched.setattr(apart.subprocess, "Popen", lambda _, **more: spawn(**more))
        limits = Limits(decode_stall_s=2)
        code, _ = refusal(VIDEO, limits=limits, on_read=lambda: heard.append(None))
    while apart._Decoder._idle:
        apart._Decoder._idle.pop().end()
    assert code == (ErrorCode.VIDEO_UNREADABLE if ends else ErrorCode.VIDEO_EMPTY)
    assert heard


def test_a_decoder_ends_with_the_process_that_started_it() -> None:
    script = (
        "import os, tempfile\n"
        "from pipeline.media import apart\n"
        "decoder = apart._Decoder.take()\n"
        "print(decoder._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == -9
    decoder = int(done.stdout)
    if psutil.pid_exists(decoder):
        psutil.Process(decoder).wait(20)


# Helpers


def read(data: bytes, **request: Any) -> Clip:
    with stored(data) as file:
        return read_clip_apart(file, **CLIP | request)


def refusal(data: bytes, **request: Any) -> tuple[ErrorCode, str]:
    """The code and the message."""
    with pytest.raises(RowError, match=r"^drawn: ") as refused:
        read(data, **request)
    return refused.value.code, refused.value.message.removeprefix("drawn: ")


def stored(data: bytes) -> BinaryIO:
    file: Any = tempfile.TemporaryFile()
    file.write(data)
    file.flush()
    return file  # type: ignore[no-any-return]


def decoders() -> list[int]:
    """The decoders of this process."""
    children = psutil.Process().children()
    return [c.pid for c in children if "pipeline.media.decoder" in c.cmdline()]


def peak_kb(data: bytes, limits: Limits) -> int:
    """The most memory that a new decoder had after it met a file."""
    while apart._Decoder._idle:
        apart._Decoder._idle.pop().end()
    decoder = apart._Decoder.take()
    message = {**CLIP, "rule": {}, "limits": vars(limits)}
    with stored(data) as file, pytest.raises(RowError):
        decoder.read(file, message, lambda: None)
    with open(f"/proc/{decoder._process.pid}/status") as status:
        peak = next(line for line in status if line.startswith(("VmHWM", "VmRSS")))
    decoder.end()
    return int(peak.split()[1])


def endless_mp4(frames: int, tracks: int = 1) -> bytes:
    """An MP4 that says it has so many frames of one byte each in each track, and has no data."""

    def box(kind: bytes, *parts: bytes) -> bytes:
        data = b"".join(parts)
        return struct.pack(">I", 8 + len(data)) + kind + data

    def full(kind: bytes, *parts: bytes) -> bytes:
        return box(kind, b"\0\0\0\0", *parts)

    def numbers(*values: int) -> bytes:
        return struct.pack(f">{len(values)}I", *values)

    size = struct.pack(">HH", 64, 48)
    picture = b"\0" * 6 + b"\0\1" + b"\0" * 16 + size + numbers(72 << 16, 72 << 16)
    avc1 = box(b"avc1", picture, b"\0" * 4, b"\0\1", b"\0" * 32, struct.pack(">Hh", 24, -1))
    table = box(
        b"stbl",
        full(b"stsd", numbers(1), avc1),
        full(b"stts", numbers(1, frames, 1)),
        full(b"stsc", numbers(1, 1, frames, 1)),
        full(b"stsz", numbers(1, frames)),
        full(b"stco", numbers(1, 40)),
    )
    media = box(
        b"mdia",
        full(b"mdhd", numbers(0, 0, 1000, frames, 0)),
        full(b"hdlr", b"\0" * 4, b"vide", b"\0" * 13),
        box(b"minf", full(b"vmhd", b"\0" * 8), table),
    )
    head = full(b"mvhd", numbers(0, 0, 1000, frames), b"\0" * 80)
    track = [
        box(b"trak", full(b"tkhd", numbers(0, 0, n, 0, frames), b"\0" * 60), media)
        for n in range(1, tracks + 1)
    ]
    return (
        box(b"ftyp", b"isom\0\0\2\0isom") + box(b"moov", head, *track) + box(b"mdat", b"\0" * 999)
    )
