"""Videos decoded in a process of their own, which bounds what a file can do.

A crafted file of some kilobytes can make FFmpeg take all memory of a node, or end its process. So
a small process without torch decodes (`decoder.py`), with a bound on its memory. It costs a file
its own row; the process is started again for the next one. One that gives no frame for a while is
ended, too. It stays between files, since its start takes a good part of a second, and ends with the
process that started it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from pipeline.errors import ErrorCode, RowError
from pipeline.media.counts import DEFAULT_RULE, FrameRule
from pipeline.media.decoding import DEFAULT_LIMITS, Clip
from pipeline.settings import Limits

HEAD = struct.Struct(">cQ")
"""What stands before each part of an answer: its kind, and how many bytes follow. After PROGRESS
none do: in the place of their number is that of the frames decoded so far."""
PROGRESS, FRAMES, ABOUT, REFUSED, FAILED = b"p", b"f", b"a", b"r", b"s"
CHANNEL = "RETAKE_DECODER_SOCKET"
"""The environment variable that tells a decoder which file descriptor is its socket."""
TRIES = 2
"""A decoder may be killed for what another process took; the second time it is the file's doing."""
SMALL = 16
"""Height and width in pixels of frames that are only counted."""
IDLE = 2
"""So many decoders are kept for the next file; a process reads one ahead and one now."""


def read_clip_apart(
    file: BinaryIO,
    on_read: Callable[[], None] = lambda: None,
    *,
    rule: FrameRule = DEFAULT_RULE,
    limits: Limits = DEFAULT_LIMITS,
    **request: Any,
) -> Clip:
    """As `read_clip`, in a process of its own.

    Args:
        file: of this machine; it has a file descriptor.
        on_read: called as the file is decoded.

    Raises:
        RowError: as `read_clip`, and VIDEO_TOO_LARGE where it takes more memory than the limits
            allow, VIDEO_UNREADABLE where it ends the decoder, or no frame comes for
            `limits.decode_stall_s`.
    """
    pixels, about = _read_apart(file, on_read, rule, limits, request)
    import torch

    frames = torch.from_numpy(pixels.reshape(about.pop("shape")))
    return Clip(frames=frames, **about)


def clip_frames_apart(
    file: BinaryIO,
    *,
    rule: FrameRule = DEFAULT_RULE,
    limits: Limits = DEFAULT_LIMITS,
    **request: Any,
) -> int:
    """How many frames the clip of a file has. Arguments and errors as `read_clip_apart`; no torch.

    They are decoded, since what a file says of its length may be wrong, and made small.
    """
    small = {"height": SMALL, "width": SMALL}
    _, about = _read_apart(file, lambda: None, rule, limits, request | small)
    return int(about["shape"][0])


def _read_apart(
    file: BinaryIO,
    on_read: Callable[[], None],
    rule: FrameRule,
    limits: Limits,
    request: dict[str, Any],
) -> tuple[np.ndarray, dict[str, Any]]:
    """The pixels of a clip, in a row, and what is said of them: their shape, and as `Clip` has it.

    Raises as `read_clip_apart`.
    """
    message = {**request, "rule": asdict(rule), "limits": asdict(limits)}
    for last in (False,) * (TRIES - 1) + (True,):
        decoder = _Decoder.take()
        try:
            answer = decoder.read(file, message, on_read)
        except _Ended as error:
            if last:
                raise RowError(
                    ErrorCode.VIDEO_UNREADABLE,
                    f"{request['name']}: its decoding ends the process that does it ({error}), "
                    f"{TRIES} times; convert it anew, as with `ffmpeg -i OLD NEW.mp4`",
                ) from error
            continue
        except TimeoutError as error:
            decoder.end()
            raise RowError(
                ErrorCode.VIDEO_UNREADABLE,
                f"{request['name']}: its decoding gave no frame for {limits.decode_stall_s:g} s "
                "and was ended; convert it anew, as with ffmpeg -i, or set limits.decode_stall_s "
                "higher",
            ) from error
        except RowError as error:
            decoder.give_back(spent=error.code == ErrorCode.VIDEO_TOO_LARGE)
            raise
        except BaseException:
            decoder.end()
            raise
        decoder.give_back()
        return answer
    raise AssertionError("the last try returns or raises")


class _Ended(Exception):
    """A decoder ended before it answered; the text says how."""


class _Decoder:
    """A process that decodes one file after the other."""

    _idle: list[_Decoder] = []  # noqa: RUF012 - those of this process
    _lock = threading.Lock()

    @classmethod
    def take(cls) -> _Decoder:
        """One that waits, or a new one."""
        with cls._lock:
            while cls._idle:
                decoder = cls._idle.pop()
                if decoder._process.poll() is None and decoder._owner == os.getpid():
                    return decoder
        return cls()

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair()
        self._owner = os.getpid()
        root = str(Path(__file__).parents[2])
        path = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.media.decoder"],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path),
                    "OPENBLAS_NUM_THREADS": "1",  # each of its threads reserves memory
                    CHANNEL: str(theirs.fileno()),
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def read(
        self, file: BinaryIO, message: dict[str, Any], on_read: Callable[[], None]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The pixels of a clip, in a row, and what is said of them.

        Raises:
            RowError: as the decoder does.
            TimeoutError: no frame came for as long as the limits allow.
            _Ended: it ended.
        """
        data = json.dumps(message).encode()
        stall_s = message["limits"]["decode_stall_s"]
        pixels: np.ndarray | None = None
        frames, until = 0, time.monotonic() + stall_s
        self._channel.settimeout(stall_s)
        try:
            file.seek(0)
            socket.send_fds(self._channel, [struct.pack(">Q", len(data))], [file.fileno()])
            self._channel.sendall(data)
            while True:
                self._channel.settimeout(max(0.001, until - time.monotonic()))
                kind, size = HEAD.unpack(received(self._channel, HEAD.size))
                if kind == PROGRESS:
                    on_read()
                    until = time.monotonic() + stall_s if size > frames else until
                    frames = size
                    continue
                self._channel.settimeout(stall_s)
                if kind == FRAMES:
                    pixels = np.empty(size, np.uint8)
                    receive_into(self._channel, pixels.data)
                    until = time.monotonic() + stall_s
                    continue
                about = json.loads(received(self._channel, size))
                about = _good(kind, about, message)
                return cast(np.ndarray, pixels), about
        except (ConnectionError, EOFError) as error:
            raise _Ended(self.end()) from error

    def give_back(self, *, spent: bool = False) -> None:
        """Keep it for the next file, where there is room.

        Args:
            spent: it has met its bound: what FFmpeg holds then is not known.
        """
        with self._lock:
            if not spent and len(self._idle) < IDLE:
                self._idle.append(self)
                return
        self.end()

    def end(self) -> str:
        """End the process; how it ended, in words."""
        self._channel.close()
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return "it stopped answering"
        if status < 0:
            return f"signal {signal.Signals(-status).name}"
        return f"exit status {status}"


def _good(kind: bytes, answer: Any, message: dict[str, Any]) -> dict[str, Any]:
    """What is said of a clip. Raises what the answer says where there is none."""
    if kind == REFUSED:
        raise RowError(ErrorCode(answer["code"]), answer["message"])
    if kind == FAILED:
        raise RuntimeError(f"{message['name']}: {answer}")
    return dict(answer)


def received(channel: socket.socket, size: int) -> bytes:
    """So many bytes from a socket.

    Raises:
        EOFError: its other end is closed.
    """
    data = bytearray(size)
    receive_into(channel, memoryview(data))
    return bytes(data)


def receive_into(channel: socket.socket, data: memoryview) -> None:
    """Fill memory from a socket. Raises as `received`."""
    while data:
        count = channel.recv_into(data)
        if not count:
            raise EOFError
        data = data[count:]
