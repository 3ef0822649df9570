"""What the parts of a conversion hand to each other: a record of a source, an edit of a video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import ConvertError


@dataclass(frozen=True)
class Record:
    """One line, entry, sample or file of a source.

    Args:
        place: where it stands, for messages: "line 12".
        values: its columns; they may be taken out.
        base: the folder that a relative video is relative to.
        name: the video's name in the source; None where a column has it.
        uri: where that video lies.
    """

    place: str
    values: dict[str, Any]
    base: str
    name: str | None = None
    uri: str | None = None


@dataclass(frozen=True)
class Entry:
    """One edit of one video, as its source has it; nothing is checked yet.

    Args:
        place: where it stands, for messages: "line 12" or "entry 3, edit 2".
        video: its name in the source, of which the default id is made; `uri` is where it lies.
        edit: the values of an `EditSpec`.
        settings: the other values of its `VideoSpec`.
        extra: the passthrough columns.
        published: the ids are a benchmark's names, which get a number where they are taken;
            else they are the user's own, and one that is taken is a problem.
        given: the prompt was given for all videos, as number so and so, so a video that comes
            twice gets it once.
    """

    place: str
    video: Any
    uri: Any
    edit: Mapping[str, Any]
    video_id: Any = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    published: bool = False
    given: int | None = None


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Each storage has its own kinds of failure; here they all become one."""
    try:
        yield
    except ConvertError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ConvertError(f"{uri}: cannot be read: {type(error).__name__}: {reason}") from error


def examples(names: list[str], most: int = 3) -> str:
    """The first few of many, for a message."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
