"""A video file from anywhere, opened with care and decoded once from its start.

Files may be hostile, broken or no video at all. `open_source` starts only demuxers that read
nothing but the file itself, and each way in which a file disappoints has its own error code.

A file that ends early is VIDEO_TRUNCATED rather than a shorter video, wherever that can be seen: by
a damaged packet or frame, or by an MP4, Matroska or AVI that says it is longer than the file is. An
MP4 that lost its index is VIDEO_TRUNCATED too. Raw streams, MPEG-TS, FLV and GIF do not
say how long they are: cut off between two frames they are whole, shorter videos.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import BinaryIO

import av
from av import Packet, VideoFrame
from av.container import InputContainer
from av.video.stream import VideoStream

from pipeline.errors import ErrorCode, RowError
from pipeline.media.clock import FASTEST, Clock
from pipeline.media.damage import is_cut_off, joined_at, named
from pipeline.media.streams import PixelAspects, best_stream, is_cover
from pipeline.settings import Limits

# FFmpeg's demuxers that read nothing but the file itself. Left out are those that open what the
# file names (hls, dash, concat, sdp, imf, ...) and still images. The second line is audio, so that
# the message for such a file names what it lacks.
CONTAINERS = (
    "mov,matroska,avi,flv,live_flv,mpegts,mpeg,asf,mxf,gxf,nut,ogg,rm,wtv,dv,ivf,nsv,gif,apng,"
    "mp3,aac,flac,wav,w64,aiff,caf,ac3,eac3,dts,amr,au,"
    "mpegvideo,m4v,h261,h263,h264,hevc,vvc,av1,obu,vc1,dirac,cavsvideo,mjpeg,yuv4mpegpipe"
)
STILLS = "png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe"
"""The demuxers of still images, which a mask may be."""
AVFMT_TS_DISCONT = 0x200  # FFmpeg's flag of formats whose clock may jump
ANIMATED_IMAGES = {"gif", "apng"}
SHORTEST_SHOWN, SHOWN_AS = Fraction(1, 50), Fraction(1, 10)
"""All browsers show a frame of an animated image that shall last less than 20 ms for 100 ms."""
MAX_STREAMS = 100
"""In one file. Each has tables of its own, so a small file of many takes much memory."""


@contextmanager
def open_source(
    file: BinaryIO, name: str, limits: Limits, *, stills: bool = False
) -> Iterator[VideoSource]:
    """Opens the one video stream of a file, to be decoded within the `with` block.

    Args:
        file: seekable, open for reading. Not closed.
        name: what error messages call the file.
        limits: of a frame's pixels, and of the frames that are decoded.
        stills: whether it may be a still image, too.

    Raises:
        RowError: VIDEO_EMPTY, VIDEO_UNREADABLE, VIDEO_TRUNCATED, NO_VIDEO_STREAM or
            VIDEO_TOO_LARGE; and while decoding VIDEO_UNREADABLE, VIDEO_TRUNCATED or
            VIDEO_TOO_LARGE.
        OSError: as `file` raises it.
    """
    with _open_container(file, name, limits, stills) as container:
        stream = _video_stream(file, container, name, limits)
        yield VideoSource(file, name, container, stream, limits.frames)


class VideoSource:
    """A video stream that is decoded once, from its start.

    Attributes:
        name: what error messages call the file.
        on_frame: called for each frame that was decoded.
        decoded: frames decoded so far, those before the first wanted one counted.
        ended: whether `decoded` is all there are.
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        container: InputContainer,
        stream: VideoStream,
        most_frames: int,
    ) -> None:
        self._file, self._most_frames = file, most_frames
        self._container = container
        self._stream = stream
        self._rates = _declared_rates(stream)
        self._clock = Clock(
            self._rates,
            tick=stream.time_base or Fraction(1, 1_000_000),
            jumps=bool(container.format.flags & AVFMT_TS_DISCONT),
        )
        self._starts: list[Fraction] = []
        self._aspects = PixelAspects(stream)
        self._joined: int | None = None
        self._moved = False
        self.name = name
        self.on_frame: Callable[[], None] = lambda: None
        self.decoded = 0
        self.ended = False

    @property
    def is_still(self) -> bool:
        """Whether it is a still image."""
        return self._container.format.name in STILLS.split(",")

    @property
    def frame_count(self) -> int | None:
        """Frames of the file: counted once it was read to its end, else as declared, if at all.

        An AVI counts dropped frames too.
        """
        if self.ended:
            return self.decoded
        dropped = self._container.format.name == "avi" and self.fps() not in self._rates
        return None if dropped else self._stream.frames or None

    def fps(self, count: int | None = None) -> Fraction:
        """Frames a second of the first `count` frames that `decode` gave, or of all."""
        return self._clock.rate(self._starts[:count])

    def pixel_aspect(self, frame: VideoFrame) -> Fraction:
        """Width of a stored pixel of a frame over its height."""
        return self._aspects.of(frame)

    def variant(self, resampled: bool) -> str:
        """What sets a clip apart from one of the first stream by its own shapes and times."""
        first = next(s for s in self._container.streams.video if not is_cover(s))
        found = {
            f"stream {self._stream.index}": self._stream.index != first.index,
            "aspects": self._aspects.changed,
            "times": self._moved and resampled,
        }
        return ", ".join(what for what, holds in found.items() if holds)

    def is_cut_off(self) -> bool:
        """Whether the file says that it is longer than it is. Asked after decoding has ended."""
        return is_cut_off(self._file)

    def decode(self, first: int) -> Iterator[tuple[float, float, VideoFrame]]:
        """(start, duration, frame) from the frame `first` on, times in seconds."""
        for frame in self._frames():
            self.decoded += 1
            self.on_frame()
            if self.decoded > self._most_frames:
                raise RowError(
                    ErrorCode.VIDEO_TOO_LARGE,
                    f"{self.name}: {self._most_frames} frames were decoded, and the edit needs "
                    "more; lower start_frame, or set limits.frames higher",
                )
            start, duration = self._clock.place(*self._declared_times(frame), key=frame.key_frame)
            if frame.pts is not None and start != frame.pts * (frame.time_base or 0):
                self._moved = True
            if self.decoded <= first:
                continue
            if frame.is_corrupt:
                raise self._damaged("it does not decode whole")
            self._starts.append(start)
            yield float(start), float(duration), frame
        self.ended = True

    def _declared_times(self, frame: VideoFrame) -> tuple[Fraction | None, Fraction]:
        """(start, duration) as the file has them, seconds; None and 0 where it does not."""
        tick = frame.time_base or Fraction(0)
        duration = frame.duration * tick
        if self._container.format.name in ANIMATED_IMAGES:
            return None, SHOWN_AS if 0 < duration < SHORTEST_SHOWN else duration
        # An AVI counts pictures as they are stored, which is not the order in which they are shown.
        time = frame.dts if self._container.format.name == "avi" else frame.pts
        return None if time is None else time * tick, duration

    def _frames(self) -> Iterator[VideoFrame]:
        trouble: str | None = "it holds none"
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = self._aspects.decode(packet)
                except av.FFmpegError as error:
                    # A recording may start between key frames; later an error is damage.
                    if self.decoded or isinstance(error, MemoryError):
                        raise
                    trouble = error.strerror
                    continue
                if self.decoded and not self._is_whole(packet):
                    raise self._damaged("its data is incomplete")
                yield from frames
        except MemoryError:  # of FFmpeg too: it is no damage
            raise
        except av.FFmpegError as error:
            raise self._damaged(error.strerror) from error
        if not self.decoded:
            why = f"no frame can be decoded ({trouble})"
            raise _unusable(self._file, self.name, ErrorCode.VIDEO_UNREADABLE, why)

    def _is_whole(self, packet: Packet) -> bool:
        """Whether nothing of a packet is missing, nor of what it builds on."""
        if self._joined is not None and (packet.pos or 0) >= self._joined:
            self._joined = None
            if not packet.is_keyframe:
                return False
        if packet.is_corrupt:
            if self._container.format.name != "mpegts" or packet.pos is None:
                return False
            self._joined = joined_at(self._file, packet.pos)
            return self._joined is not None
        return True

    def _damaged(self, why: str | None) -> RowError:
        return RowError(
            ErrorCode.VIDEO_TRUNCATED,
            f"{self.name}: cut off or damaged at frame {self.decoded}: {why}; "
            "copy it again from its origin",
        )


def _open_container(file: BinaryIO, name: str, limits: Limits, stills: bool) -> InputContainer:
    if file.seek(0, io.SEEK_END) == 0:
        raise RowError(
            ErrorCode.VIDEO_EMPTY, f"{name}: the file has 0 bytes; expected a video: copy it again"
        )
    file.seek(0)
    # Files come from anywhere: a demuxer that would follow a path or an address is never started,
    # and none of FFmpeg's protocols would answer it.
    of_container = {
        "format_whitelist": f"{CONTAINERS},{STILLS}" if stills else CONTAINERS,
        "protocol_whitelist": "none",
        "max_streams": str(MAX_STREAMS),
    }
    try:
        return av.open(
            file,
            "r",
            options={"max_pixels": str(limits.pixels)},  # a frame is decoded to find out its kind
            container_options=of_container,
            metadata_errors="ignore",
        )
    except MemoryError:
        raise
    except av.FFmpegError as error:
        file.seek(0)
        found = named(file.read(512))
        # An invalid argument is what FFmpeg calls a known format that the list does not have.
        if isinstance(error, av.ArgumentError):
            found = "a still image, a playlist or the like"
        why = (
            f"not a video file, but {found}; expected MP4, MOV, MKV, WebM, AVI or another "
            "container that holds the video itself"
        )
        raise _unusable(file, name, ErrorCode.VIDEO_UNREADABLE, why) from error


def _video_stream(
    file: BinaryIO, container: InputContainer, name: str, limits: Limits
) -> VideoStream:
    stream = best_stream(container.streams.video)
    if stream is None:
        found = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        why = f"no video stream, only {found}; expected a video"
        raise _unusable(file, name, ErrorCode.NO_VIDEO_STREAM, why)
    if stream.codec_context is None:
        why = "its video has a codec that FFmpeg cannot decode; convert it to H.264"
        raise _unusable(file, name, ErrorCode.VIDEO_UNREADABLE, why)
    if stream.width * stream.height > limits.pixels:
        why = (
            f"its picture of {stream.width}x{stream.height} is too large; expected at most "
            f"{limits.pixels} pixels: scale it down, or set limits.pixels higher"
        )
        raise RowError(ErrorCode.VIDEO_TOO_LARGE, f"{name}: {why}")
    # The frames may be larger than the container says.
    stream.codec_context.options = {"max_pixels": str(limits.pixels)}
    return stream


def _declared_rates(stream: VideoStream) -> list[Fraction]:
    """The rates that a header names, in frames a second, the best one first."""
    rates = [rate for rate in (stream.average_rate, stream.guessed_rate) if rate]
    # 25 is what FFmpeg takes for streams that carry no timing.
    return [rate for rate in rates if rate <= FASTEST] or [Fraction(25)]


def _unusable(file: BinaryIO, name: str, code: ErrorCode, why: str) -> RowError:
    """The refusal with `code`, or with VIDEO_TRUNCATED where that is what is behind it."""
    if is_cut_off(file):
        return RowError(
            ErrorCode.VIDEO_TRUNCATED,
            f"{name}: the file is cut off before its first frame; copy it again from its origin",
        )
    return RowError(code, f"{name}: {why}")
