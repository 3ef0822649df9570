"""Which stream of a file is the video, and the shape of its pixels."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import cast

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
    decoded last, and frames come out packets later, so each packet carries it to its frame.

    Attributes:
        changed: whether one of the frames asked for had another than the first frame.
    """

    def __init__(self, stream: VideoStream) -> None:
        self._decoder = stream.codec_context
        self._decoder.copy_opaque = True
        self._declared = stream.sample_aspect_ratio or Fraction(1)
        self._first: Fraction | None = None
        self.changed = False

    def decode(self, packet: Packet) -> list[VideoFrame]:
        """The frames that a packet completes.

        Raises:
            av.FFmpegError: as the packet's decoder does.
        """
        note: list[Fraction] = []
        packet.opaque = note
        frames = packet.decode()
        note.append(self._decoder.sample_aspect_ratio or Fraction(1))
        if self._first is None and frames:
            self._first = self._written(frames[0])
        return frames

    def of(self, frame: VideoFrame) -> Fraction:
        """The aspect of one of the frames."""
        aspect = self._written(frame)
        if aspect == self._first:
            return self._declared
        self.changed = True
        return aspect

    def _written(self, frame: VideoFrame) -> Fraction:
        note = cast("list[Fraction] | None", frame.opaque)
        return note[0] if note else self._decoder.sample_aspect_ratio or Fraction(1)
