"""What can go wrong with one row, as a closed set of codes.

A stage that meets one of these gives the row a failed result with the code and the message;
everything else in the job goes on. docs/guide.md lists the codes with what to do about each.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pipeline.redaction import redacted


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
    VIDEO_TOO_LARGE = "video_too_large"
    BAD_MASK = "bad_mask"
    # the work
    NOT_FINITE = "not_finite"
    OUT_OF_MEMORY = "out_of_memory"
    DEADLINE = "deadline"
    RANK_DIED = "rank_died"
    # the storage
    STORAGE_DENIED = "storage_denied"
    STORAGE_UNREACHABLE = "storage_unreachable"
    STORAGE_BUSY = "storage_busy"
    DISK_FULL = "disk_full"
    EDIT_LOST = "edit_lost"
    STORAGE = "storage"
    # this package
    INTERNAL = "internal"


class RowError(Exception):
    """One row cannot be done; the rest of the job can.

    Args:
        code: which of the closed set of reasons it is.
        message: names the value, what was expected, and the way out; secrets are taken out of it.
        needs_restart: the other ranks of the group wait in an exchange for the one that raised
            this: none of them can take another request.
    """

    def __init__(self, code: ErrorCode, message: str, needs_restart: bool = False) -> None:
        message = redacted(message)
        super().__init__(message)
        self.code = code
        self.message = message
        self.needs_restart = needs_restart

    def __reduce__(self) -> tuple[type[RowError], tuple[ErrorCode, str, bool]]:
        return type(self), (self.code, self.message, self.needs_restart)


class Unreadable(Exception):
    """A file that the whole job needs is damaged; the text names it and the way out."""


class NoMemory(Unreadable):
    """A file could not be read since memory ran out. Nothing is known to be wrong with it."""

    def __init__(self, what: str, error: BaseException) -> None:
        super().__init__(
            f"{what}: this machine has too little free memory to read it ({error}). End other "
            "programs, or use a machine with more"
        )


class UnsupportedCheckpoint(ValueError):
    """The checkpoint is not a CogVideoX text-to-video model that this package can run."""


@dataclass(frozen=True)
class Trouble:
    """Why a location cannot be read or written, in a person's words.

    Args:
        text: goes on after the location: "<location>: <text>".
        temporary: whether the same may go well a little later: the storage is busy, say.
    """

    code: ErrorCode
    text: str
    temporary: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", redacted(self.text))


class StorageFailed(OSError):
    """A file could not be read or written, and not because it is missing.

    Args:
        location: the path or URI of the file or folder.
    """

    def __init__(self, location: str, trouble: Trouble) -> None:
        super().__init__(f"{redacted(location)}: {trouble.text}")
        self.location = location
        self.trouble = trouble

    def __reduce__(self) -> tuple[type[StorageFailed], tuple[str, Trouble]]:
        return type(self), (self.location, self.trouble)


def causes_of(error: BaseException) -> list[BaseException]:
    """An exception, what it was raised from, and so on."""
    causes: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in causes:
        causes.append(following)
        following = following.__cause__ or following.__context__
    return causes


def http_status(error: BaseException) -> int | None:
    """The HTTP status in an exception of aiohttp, gcsfs, botocore or azure."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        answer = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif answer is not None:  # of requests
        answer = getattr(answer, "status_code", answer)
    found = (getattr(error, name, None) for name in ("status", "status_code", "code"))
    for value in (answer, *found):
        if str(value).isdigit() and 400 <= int(str(value)) < 600:
            return int(str(value))
    return None
