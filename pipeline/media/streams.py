"""Which stream of a file is the video, and the shape of its pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from av import Packet, VideoFrame
from av.stream import Disposition
from av.video.stream import VideoStream

BESIDE = (
    Disposition.attached_pic  # the cover picture of a song
    | Disposition.timed_thumbnails
)
"""What FFmpeg calls a video stream and no player plays."""
SECOND = Disposition.still_image | Disposition.dependent | Disposition.visual_impaired
"""What is played beside the video, or instead of it on request."""
REMEMBERED = 256
"""So many frames and packets: more than decoders and `resample` hold back."""


def is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & BESIDE)


def best_stream(streams: Iterable[VideoStream]) -> VideoStream | None:
    """The stream that a player shows when nobody chooses; None where there is no video at all.

    One that can be decoded, moving pictures before a still one, the file's default before others,
    the largest picture, the first.
    """
    videos = [stream for stream in streams if not is_cover(stream)]
    return max(videos, key=_merit, default=None)  # the first of equals


def _merit(stream: VideoStream) -> tuple[bool, bool, bool, int]:
    if stream.codec_context is None:
        return False, False, False, 0
    moves = stream.frames != 1 and not stream.disposition & SECOND
    default = bool(stream.disposition & Disposition.default)
    return True, moves, default, stream.width * stream.height


class PixelAspects:
    """The width of a pixel over its height, for each frame of a stream.

    The container's word is taken over the stream's, as players do, until the stream changes it: a
    broadcast goes from 4:3 to 16:9 and back. PyAV tells the aspect only of the packet that was
    decoded last, and frames come out packets later. So it is noted by what a packet and its frame
    have in common: their times, or in a stream without any their number, since all frames of one
    shape come out before those of the next. (A packet can carry a Python object to its frame, but
    FFmpeg frees that from threads of its own, which would call Python.)

    Attributes:
        changed: whether one of the frames asked for had another than the first frame.
    """

    def __init__(self, stream: VideoStream) -> None:
        self._decoder = stream.codec_context
        self._declared = stream.sample_aspect_ratio or Fraction(1)
        self._packets = self._frames = 0
        self._noted: dict[tuple[str, int], Fraction] = {}
        self._aspects: dict[int, Fraction] = {}  # by the id of a frame, which a live one has alone
        self._first: Fraction | None = None
        self.changed = False

    def decode(self, packet: Packet) -> list[VideoFrame]:
        """The frames that a packet completes.

        Raises:
            av.FFmpegError: as the packet's decoder does.
        """
        marks = _marks(packet, self._packets)
        frames = packet.decode()
        self._packets += 1
        aspect = self._decoder.sample_aspect_ratio or Fraction(1)
        _remember(self._noted, dict.fromkeys(marks, aspect))
        for frame in frames:
            found = (self._noted.get(mark) for mark in _marks(frame, self._frames))
            self._frames += 1
            _remember(self._aspects, {id(frame): next(filter(None, found), aspect)})
        if self._first is None and frames:
            self._first = self._aspects[id(frames[0])]
        return frames

    def of(self, frame: VideoFrame) -> Fraction:
        """The aspect of one of the last `REMEMBERED` frames."""
        aspect = self._aspects[id(frame)]
        if aspect == self._first:
            return self._declared
        self.changed = True
        return aspect


def _marks(one: Packet | VideoFrame, number: int) -> list[tuple[str, int]]:
    """What a packet and its frame have in common."""
    times = [
        (name, time) for name, time in (("pts", one.pts), ("dts", one.dts)) if time is not None
    ]
    return times or [("number", number)]


def _remember(known: dict[Any, Fraction], more: Mapping[Any, Fraction]) -> None:
    for key, value in more.items():
        known.pop(key, None)
        known[key] = value
        if len(known) > REMEMBERED:
            del known[next(iter(known))]
