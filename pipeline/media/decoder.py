"""The process that decodes videos for another one: `python -m pipeline.media.decoder`.

It hears on a socket what to decode, with the open file itself, and answers with the frames. Its
memory is bounded for each file. It ends when its socket is closed, also in the middle of a file.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Any, BinaryIO

from pipeline.errors import ErrorCode, RowError, causes_of
from pipeline.media.apart import ABOUT, CHANNEL, FAILED, FRAMES, HEAD, PROGRESS, REFUSED, received
from pipeline.media.counts import FrameRule
from pipeline.media.decoding import decode_clip
from pipeline.media.source import MAX_STREAMS
from pipeline.redaction import log_error
from pipeline.settings import Limits

PULSE_S = 1.0
"""Between two words of progress."""


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    channel = socket.socket(fileno=int(os.environ[CHANNEL]))
    threading.Thread(target=_end_with, args=(channel,), daemon=True).start()
    with suppress(EOFError, ConnectionError):
        while True:
            _answer(channel)


def _end_with(channel: socket.socket) -> None:
    """Ends the process when the other end of its socket is closed, whatever FFmpeg does."""
    closed = select.POLLHUP | getattr(select, "POLLRDHUP", 0)
    poll = select.poll()
    poll.register(channel, closed)
    poll.poll()
    os._exit(0)


def _answer(channel: socket.socket) -> None:
    length, (descriptor,) = _request(channel)
    request = json.loads(received(channel, length))
    limits = Limits(**request.pop("limits"))
    _bound_memory(limits, request)
    with os.fdopen(descriptor, "rb") as file:
        heard = _Heard(file, channel)
        try:
            pixels, about = decode_clip(
                heard,  # type: ignore[arg-type]
                on_frame=heard.on_frame,
                rule=FrameRule(**request.pop("rule")),
                limits=limits,
                **request,
            )
        except Exception as error:
            _send(channel, *_refusal(error, request["name"], limits))
            return
    _send(channel, FRAMES, pixels.reshape(-1).data)
    _send(channel, ABOUT, json.dumps({**about, "shape": pixels.shape}).encode())


def _request(channel: socket.socket) -> tuple[int, list[int]]:
    """How long the next request is, and the descriptor of its file."""
    head, descriptors, _, _ = socket.recv_fds(channel, 8, 1)
    if not head:
        raise EOFError
    head += received(channel, 8 - len(head))
    return struct.unpack(">Q", head)[0], list(descriptors)


def _bound_memory(limits: Limits, request: dict[str, Any]) -> None:
    """Bounds the process' memory: what the limits allow, and the clip itself twice."""
    clip = 3 * request["height"] * request["width"] * request["frames"]
    most = int(limits.memory_gb * 1e9) + 2 * clip
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def _refusal(error: Exception, name: str, limits: Limits) -> tuple[bytes, bytes]:
    causes = causes_of(error)
    if any(isinstance(c, MemoryError) or getattr(c, "errno", 0) == errno.ENOMEM for c in causes):
        error = RowError(
            ErrorCode.VIDEO_TOO_LARGE,
            f"{name}: decoding it takes more than {limits.memory_gb:g} GB of memory, or it has "
            f"more than {MAX_STREAMS} streams; scale it down, or set limits.memory_gb higher",
        )
    if isinstance(error, RowError):
        return REFUSED, json.dumps({"code": error.code, "message": error.message}).encode()
    log_error(error)
    return FAILED, json.dumps(f"{type(error).__name__}: {error}").encode()


def _send(channel: socket.socket, kind: bytes, data: bytes | memoryview) -> None:
    channel.sendall(HEAD.pack(kind, len(data)))
    channel.sendall(data)


class _Heard:
    """A file whose reads are reported to who waits for it, with the frames that came of them; at
    most once in a while."""

    def __init__(self, file: BinaryIO, channel: socket.socket) -> None:
        self._file, self._channel = file, channel
        self._last = -PULSE_S  # the first read is progress
        self._frames = 0

    def read(self, size: int = -1) -> bytes:
        self._report()
        return self._file.read(size)

    def on_frame(self) -> None:
        self._frames += 1
        self._report()

    def _report(self) -> None:
        if time.monotonic() - self._last > PULSE_S:
            self._last = time.monotonic()
            self._channel.sendall(HEAD.pack(PROGRESS, self._frames))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


if __name__ == "__main__":
    main()
