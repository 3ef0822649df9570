"""What can go wrong with one row, as a closed set of codes.

A stage that meets one of these gives the row a failed result with the code and the message;
everything else in the job goes on. The README lists the codes with what to do about each.
"""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """Why a row has no edit. The value is what stands in the results' `error_code`."""

    # the row itself
    BAD_VIDEO_ID = "bad_video_id"
    DUPLICATE_VIDEO_ID = "duplicate_video_id"
    BAD_EDIT_ID = "bad_edit_id"
    DUPLICATE_EDIT_ID = "duplicate_edit_id"
    NO_EDITS = "no_edits"
    EMPTY_PROMPT = "empty_prompt"
    BAD_VALUE = "bad_value"
    # the video file
    BAD_URI = "bad_uri"
    VIDEO_NOT_FOUND = "video_not_found"
    VIDEO_EMPTY = "video_empty"
    VIDEO_UNREADABLE = "video_unreadable"
    VIDEO_TRUNCATED = "video_truncated"
    NO_VIDEO_STREAM = "no_video_stream"
    VIDEO_TOO_SHORT = "video_too_short"
    # the work
    NOT_FINITE = "not_finite"
    OUT_OF_MEMORY = "out_of_memory"
    DEADLINE = "deadline"
    RANK_DIED = "rank_died"
    STORAGE = "storage"
    INTERNAL = "internal"


class RowError(Exception):
    """One row cannot be done; the rest of the job can.

    Args:
        code: which of the closed set of reasons it is.
        message: names the value, what was expected, and the way out.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[RowError], tuple[ErrorCode, str]]:
        return type(self), (self.code, self.message)


class UnsupportedCheckpoint(ValueError):
    """The checkpoint is not a CogVideoX text-to-video model that this package can run."""
