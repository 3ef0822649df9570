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
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import BinaryIO

import av
from av import VideoFrame
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from pipeline.errors import ErrorCode, RowError

# FFmpeg's demuxers that read nothing but the file itself. Left out are those that open what the
# file names (hls, dash, concat, sdp, imf, ...) and still images. The second line is audio, so that
# the message for such a file names what it lacks.
CONTAINERS = (
    "mov,matroska,avi,flv,live_flv,mpegts,mpeg,asf,mxf,gxf,nut,ogg,rm,wtv,dv,ivf,nsv,gif,apng,"
    "mp3,aac,flac,wav,w64,aiff,caf,ac3,eac3,dts,amr,au,"
    "mpegvideo,m4v,h261,h263,h264,hevc,vvc,av1,obu,vc1,dirac,cavsvideo,mjpeg,yuv4mpegpipe"
)
MAX_SOURCE_PIXELS = 8192 * 8192
EBML_BOXES = {b"\x1aE\xdf\xa3", b"\x18S\x80g"}  # Matroska's header and segment
MP4_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"sidx", b"mfra"}


@contextmanager
def open_source(file: BinaryIO, name: str) -> Iterator[VideoSource]:
    """Opens the one video stream of a file, to be decoded within the `with` block.

    Args:
        file: seekable, open for reading. Not closed.
        name: what error messages call the file.

    Raises:
        RowError: VIDEO_EMPTY, VIDEO_UNREADABLE, VIDEO_TRUNCATED or NO_VIDEO_STREAM; and while
            decoding VIDEO_UNREADABLE or VIDEO_TRUNCATED.
        OSError: as `file` raises it.
    """
    with _open_container(file, name) as container:
        yield VideoSource(file, name, container, _video_stream(file, container, name))


class VideoSource:
    """A video stream that is decoded once, from its start.

    Attributes:
        name: what error messages call the file.
        fps: average frames a second.
        pixel_aspect: width of a stored pixel over its height.
        decoded: frames decoded so far, those before the first wanted one counted.
        ended: whether `decoded` is all there are.
    """

    def __init__(
        self, file: BinaryIO, name: str, container: InputContainer, stream: VideoStream
    ) -> None:
        self._file = file
        self._container = container
        self._stream = stream
        self.name = name
        # 25 is what FFmpeg takes for streams that carry no timing.
        self.fps = float(stream.average_rate or stream.guessed_rate or 25)
        self.pixel_aspect = stream.sample_aspect_ratio or Fraction(1)
        self.decoded = 0
        self.ended = False

    @property
    def frame_count(self) -> int | None:
        """Frames of the file: counted once it was read to its end, else as declared, if at all."""
        return self.decoded if self.ended else self._stream.frames or None

    def is_cut_off(self) -> bool:
        """Whether the file says that it is longer than it is. Asked after decoding has ended."""
        return _is_cut_off(self._file)

    def decode(self, first: int) -> Iterator[tuple[float, float, VideoFrame]]:
        """(start, duration, frame) from the frame `first` on, times in seconds."""
        clock = 0.0
        for frame in self._frames():
            self.decoded += 1
            start = clock if frame.pts is None else frame.time
            duration = float(frame.duration * (frame.time_base or 0)) or 1 / self.fps
            clock = start + duration
            if self.decoded <= first:
                continue
            if frame.is_corrupt:
                raise self._damaged("it does not decode whole")
            yield start, duration, frame
        self.ended = True

    def _frames(self) -> Iterator[VideoFrame]:
        trouble: str | None = "it holds none"
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except av.FFmpegError as error:
                    # A recording may start between key frames; later an error is damage.
                    if self.decoded:
                        raise
                    trouble = error.strerror
                    continue
                if packet.is_corrupt and self.decoded:
                    raise self._damaged("its data is incomplete")
                yield from frames
        except av.FFmpegError as error:
            raise self._damaged(error.strerror) from error
        if not self.decoded:
            why = f"no frame can be decoded ({trouble})"
            raise _unusable(self._file, self.name, ErrorCode.VIDEO_UNREADABLE, why)

    def _damaged(self, why: str | None) -> RowError:
        return RowError(
            ErrorCode.VIDEO_TRUNCATED,
            f"{self.name}: cut off or damaged at frame {self.decoded}: {why}; "
            "copy it again from its origin",
        )


def _open_container(file: BinaryIO, name: str) -> InputContainer:
    if file.seek(0, io.SEEK_END) == 0:
        raise RowError(ErrorCode.VIDEO_EMPTY, f"{name}: the file has 0 bytes; expected a video")
    file.seek(0)
    # Files come from anywhere: a demuxer that would follow a path or an address is never started,
    # and none of FFmpeg's protocols would answer it.
    limits = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    try:
        return av.open(file, "r", container_options=limits, metadata_errors="ignore")
    except av.FFmpegError as error:
        # An invalid argument is what FFmpeg calls a known format that the list does not have.
        listed = not isinstance(error, av.ArgumentError)
        found = "nothing that FFmpeg knows" if listed else "a still image, a playlist or the like"
        why = (
            f"not a video file, but {found}; expected MP4, MOV, MKV, WebM, AVI or another "
            "container that holds the video itself"
        )
        raise _unusable(file, name, ErrorCode.VIDEO_UNREADABLE, why) from error


def _video_stream(file: BinaryIO, container: InputContainer, name: str) -> VideoStream:
    # The cover picture of a song is a video stream to FFmpeg.
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not videos:
        found = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        why = f"no video stream, only {found}; expected a video"
        raise _unusable(file, name, ErrorCode.NO_VIDEO_STREAM, why)
    stream = videos[0]
    if stream.codec_context is None:
        why = "its video has a codec that FFmpeg cannot decode; convert it to H.264"
        raise _unusable(file, name, ErrorCode.VIDEO_UNREADABLE, why)
    if stream.width * stream.height > MAX_SOURCE_PIXELS:
        why = (
            f"its picture of {stream.width}x{stream.height} is too large; expected at most "
            f"{MAX_SOURCE_PIXELS} pixels"
        )
        raise _unusable(file, name, ErrorCode.VIDEO_UNREADABLE, why)
    # The frames may be larger than the container says.
    stream.codec_context.options = {"max_pixels": str(MAX_SOURCE_PIXELS)}
    return stream


def _unusable(file: BinaryIO, name: str, code: ErrorCode, why: str) -> RowError:
    """The refusal with `code`, or with VIDEO_TRUNCATED where that is what is behind it."""
    if _is_cut_off(file):
        return RowError(
            ErrorCode.VIDEO_TRUNCATED,
            f"{name}: the file is cut off before its first frame; copy it again from its origin",
        )
    return RowError(code, f"{name}: {why}")


def _is_cut_off(file: BinaryIO) -> bool:
    """Whether the outermost boxes of an MP4, Matroska or AVI reach past the end of the file."""
    size = file.seek(0, io.SEEK_END)
    position = 0
    for _ in range(10_000):  # no real file has more, and a crafted one shall not keep us busy
        file.seek(position)
        length = _box_length(file.read(16).ljust(16, b"\0"))
        if length is None:
            return False
        position += length
        if position >= size:
            return position > size
    return False


def _box_length(head: bytes) -> int | None:
    """The length of the box that starts with these 16 bytes, itself included, if it tells one."""
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little")
    if head[:4] in EBML_BOXES:
        # The first bit that is set tells how many bytes the number has; all ones: unknown.
        digits = 9 - head[4].bit_length()
        unknown = (1 << 7 * digits) - 1
        content = int.from_bytes(head[4 : 4 + digits], "big") & unknown
        return None if content == unknown else 4 + digits + content
    if head[4:8] in MP4_BOXES:
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        return length if length >= 8 else None
    return None
