"""Masks as people draw them: a video or a still image, white where an edit may change its source.

A mask is read as its clip is: the same first frame, count and rate, the same fit. What is wrong
with one is BAD_MASK, with the way out in its message.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.errors import ErrorCode, RowError
from pipeline.media.decoding import Clip

if TYPE_CHECKING:
    from torch import Tensor

WHITE = 128
"""From this value on, in all of red, green and blue, a pixel is white."""
SAME_SHAPE = 0.02
"""A mask may be so much wider or higher than its video, as a part: sizes are whole pixels."""
OF_THE_FILE = frozenset(
    {
        ErrorCode.BAD_URI,
        ErrorCode.VIDEO_NOT_FOUND,
        ErrorCode.VIDEO_EMPTY,
        ErrorCode.VIDEO_UNREADABLE,
        ErrorCode.VIDEO_TRUNCATED,
        ErrorCode.NO_VIDEO_STREAM,
        ErrorCode.VIDEO_TOO_SHORT,
        ErrorCode.VIDEO_TOO_LARGE,
    }
)
"""What is wrong with a file itself, and not with the storage that it lies in."""


@contextmanager
def reading_a_mask() -> Iterator[None]:
    """What is wrong with a file that is read inside is BAD_MASK."""
    try:
        yield
    except RowError as error:
        if error.code not in OF_THE_FILE:
            raise
        text = f"the mask {error.message.replace('expected a video:', 'expected a mask:')}"
        raise RowError(ErrorCode.BAD_MASK, text) from error


def white(mask: Clip, clip: Clip, name: str) -> Tensor:
    """Where a mask is white: bool [F, H, W], of its clip's size.

    Args:
        mask: read as `clip` was; one frame of a still image counts for all frames.
        name: of the mask in messages.

    Raises:
        RowError: BAD_MASK.
    """
    if clip.aspect and abs(mask.aspect / clip.aspect - 1) > SAME_SHAPE:
        raise wrong(
            name,
            f"is {mask.source_width}x{mask.source_height}, shown {mask.aspect:.3g} times as wide "
            f"as high; expected the proportions of its video, {clip.source_width}x"
            f"{clip.source_height}, shown {clip.aspect:.3g} times as wide: make it of the video's "
            "own size",
        )
    found = mask.frames.amin(-1) >= WHITE
    if len(found) == 1:
        found = found.expand(len(clip.frames), -1, -1)
    return check(found, len(clip.frames), name)


def check(mask: Tensor, frames: int, name: str) -> Tensor:
    """The mask, bool [F, H, W], of a clip of so many frames.

    Raises:
        RowError: BAD_MASK where it is too short, or nothing or all of it is white.
    """
    if len(mask) < frames:
        raise wrong(
            name,
            f"has {len(mask)} frames for the clip's {frames}; expected one for each, at the "
            "video's rate and from its first frame on, or a still image for all",
        )
    mask = mask[:frames]
    if not mask.any():
        raise wrong(
            name,
            f"has nothing white in the clip's {frames} frames, so nothing would be edited; paint "
            "white what the edit may change, or leave the mask out",
        )
    if mask.all():
        raise wrong(
            name,
            f"is white in all of the clip's {frames} frames, so nothing would be kept; paint black "
            "what is to stay (what is transparent counts by its colour), or leave the mask out",
        )
    return mask


def wrong(name: str, text: str) -> RowError:
    """The refusal of a mask."""
    return RowError(ErrorCode.BAD_MASK, f"the mask {name}: {text}")


def grey(mask: Tensor) -> Tensor:
    """A mask, [F, H, W] from 0 to 1, as frames of a video: uint8 [F, H, W, 3]."""
    import torch

    return (mask * 255).round().to(torch.uint8)[..., None].expand(*mask.shape, 3)
