"""Video files to clips: `read_clip` decodes the frames that a job edits.

What `read_clip` does with a file, in order:

1. It reads any container and codec that FFmpeg knows, as long as the file holds the video itself:
   playlists and session descriptions, which name other files or addresses, are refused.
2. It decodes from the start, and counts `start_frame` in decoded frames. Audio is ignored.
3. Without `fps` it keeps every frame in order, and reports the rate at which they last as long as
   in the source (`clock.py`). With `fps` it takes the frame nearest to each tick of that rate by
   presentation time (`frames.resample`).
4. It stops at the largest accepted frame count (`FrameRule`) that is at most `frames`. Where the
   file has fewer, it takes the largest accepted count that there is.
5. Each frame is turned upright, scaled and cropped or padded as it is decoded (`frames.fit_frame`),
   so that memory holds one frame of the source's size and the clip of the job's size.

What can be wrong with a file, and what is done about it, stands in `source.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

import av
import numpy as np
from av import VideoFrame
from av.video.reformatter import VideoReformatter

from pipeline.errors import ErrorCode, RowError
from pipeline.media.counts import DEFAULT_RULE, FrameRule
from pipeline.media.frames import (
    Fit,
    fit_frame,
    orientation,
    resample,
)
from pipeline.media.source import VideoSource, open_source
from pipeline.settings import Limits

if TYPE_CHECKING:
    import torch

__all__ = ["Clip", "Fit", "FrameRule", "read_clip"]


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Clip:
    """The frames of one video that a job edits.

    Args:
        frames: uint8 `[F, H, W, 3]`, RGB.
        fps: rate of these frames: the job's, or the one at which they last as long as in the file.
        source_fps: rate of the file's own frames that were read.
        source_frames: frames of the file: counted if it was read to its end, else as it declares
            them; None if it does not.
        source_height: stored pixel rows of the upright picture.
        source_width: stored pixel columns of the upright picture.
        content: SHA-256 of the file's bytes, where it was taken.
        aspect: width of the upright picture as it is shown, over its height.
        variant: what sets these frames apart from those of the file's first video stream by its
            first pixel shape and by its times as they are; empty for nearly all files.
    """

    frames: torch.Tensor
    fps: float
    source_fps: float
    source_frames: int | None
    source_height: int
    source_width: int
    content: str | None = None
    variant: str = ""
    aspect: float = 0.0


def read_clip(file: BinaryIO, **request: Any) -> Clip:
    """The clip of a video file, decoded in this process. Arguments and errors: `decode_clip`."""
    import torch

    pixels, about = decode_clip(file, **request)
    return Clip(frames=torch.from_numpy(pixels), **about)


def decode_clip(
    file: BinaryIO,
    *,
    name: str,
    height: int,
    width: int,
    frames: int,
    rule: FrameRule = DEFAULT_RULE,
    start_frame: int = 0,
    fps: float | None = None,
    fit: Fit = "crop",
    limits: Limits = DEFAULT_LIMITS,
    stills: bool = False,
    on_frame: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Reads the frames to edit from a video file, by the rules at the top of this module.

    Imports no torch: a small process does it, see `apart.py`.

    Args:
        file: seekable, open for reading. Not closed.
        name: what error messages call the file.
        height, width: pixel rows and columns of the clip.
        frames: most frames of the clip.
        rule: which frame counts the checkpoint accepts.
        start_frame: decoded frames of the source to leave out.
        fps: rate of the clip in frames a second; None keeps the source's frames.
        fit: `crop` fills the picture and cuts what stands over, `pad` keeps all and adds black.
        limits: of a frame's pixels, and of the frames that are decoded.
        stills: whether it may be a still image, too; it gives one frame.
        on_frame: called for each frame that was decoded, those that are left out too.

    Returns:
        uint8 `[F, H, W, 3]`, RGB, and the other fields of a `Clip`, as plain values.

    Raises:
        RowError: BAD_VALUE, VIDEO_TOO_SHORT, or as `open_source`.
        OSError: as `file` raises it.
    """
    wanted = _check_request(name, frames, rule, start_frame, fps)
    pictures: list[np.ndarray] = []
    with open_source(file, name, limits, stills=stills) as source:
        source.on_frame = on_frame
        if source.is_still:
            start_frame, fps, wanted = 0, None, 1
        timed = source.decode(start_frame)
        chosen = (frame for *_, frame in timed) if fps is None else resample(timed, fps)
        scaler = VideoReformatter()
        shown: VideoFrame | None = None
        for frame in islice(chosen, wanted):
            if frame is not shown:
                picture = _fit(frame, source, height, width, fit, scaler)
            pictures.append(picture)
            shown = frame
        if len(pictures) < wanted and source.is_cut_off():
            raise _cut_off(source)
        count = 1 if source.is_still else rule.largest_at_most(len(pictures))
        if count is None or shown is None:
            raise _too_short(source, len(pictures), rule, start_frame, fps)
        return np.stack(pictures[:count]), _about(source, count, shown, fps)


def _check_request(
    name: str, frames: int, rule: FrameRule, start_frame: int, fps: float | None
) -> int:
    """The most frames that the clip can have, once the row's numbers are found to make sense."""
    wanted = rule.largest_at_most(frames)
    if wanted is None:
        problem = f"num_frames is {frames}; expected at least {rule.minimum}"
    elif start_frame < 0:
        problem = f"start_frame is {start_frame}; expected 0 or more"
    elif fps is not None and not 0 < fps <= 1000:
        problem = f"fps is {fps}; expected more than 0 and at most 1000 frames a second"
    else:
        return wanted
    raise RowError(ErrorCode.BAD_VALUE, f"{name}: {problem}")


def _about(source: VideoSource, count: int, last: VideoFrame, fps: float | None) -> dict[str, Any]:
    """What a clip says of itself; `last` is its last frame as it was decoded."""
    own = source.fps(count if fps is None else None)
    sideways = orientation(last)[0]
    shown = source.pixel_aspect(last) * last.width / last.height
    return {
        "fps": float(own if fps is None else fps),
        "source_fps": float(own),
        "source_frames": source.frame_count,
        "source_height": last.width if sideways else last.height,
        "source_width": last.height if sideways else last.width,
        "variant": source.variant(resampled=fps is not None),
        "aspect": float(1 / shown if sideways else shown),
    }


def _cut_off(source: VideoSource) -> RowError:
    return RowError(
        ErrorCode.VIDEO_TRUNCATED,
        f"{source.name}: the file is cut off after {source.decoded} frames, short of what the "
        "edit asks for; copy it again from its origin",
    )


def _too_short(
    source: VideoSource, found: int, rule: FrameRule, start_frame: int, fps: float | None
) -> RowError:
    at = "" if fps is None else f" at {fps:g} frames a second"
    left = f", which leaves {found} from start_frame {start_frame} on{at}"
    other = "lower start_frame, or take" if start_frame else "take"
    return RowError(
        ErrorCode.VIDEO_TOO_SHORT,
        f"{source.name}: has {source.decoded} frames{left if start_frame or at else ''}; an edit "
        f"needs at least {rule.minimum}: {other} a longer video",
    )


def _fit(
    frame: VideoFrame,
    source: VideoSource,
    height: int,
    width: int,
    fit: Fit,
    scaler: VideoReformatter,
) -> np.ndarray:
    try:
        return fit_frame(
            frame,
            height=height,
            width=width,
            fit=fit,
            pixel_aspect=source.pixel_aspect(frame),
            scaler=scaler,
        )
    except MemoryError:
        raise
    except (ValueError, av.FFmpegError) as error:
        raise RowError(ErrorCode.VIDEO_UNREADABLE, f"{source.name}: {error}") from error
