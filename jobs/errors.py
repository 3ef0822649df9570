"""What stops a command and a user can repair, shown as one message; and words for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A user can repair it; the text says what is wrong and the way out."""


class WrongOption(UserError):
    """A value that an option does not take: wrong usage of the command."""


class JobError(UserError):
    """A job that cannot run as it is written; the text lists every problem."""


class ManifestError(UserError, ValueError):
    """The manifest cannot be used; the text lists every reason."""


class ConvertError(UserError, ValueError):
    """The source cannot be made into a manifest; the text says why."""


def nearest(name: str, known: Iterable[str], cutoff: float = 0.8) -> str | None:
    """The known name that `name` most likely was meant to be, or None if none is near."""
    lowered = {other.lower(): other for other in known}
    found = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=cutoff)
    return lowered[found[0]] if found else None


def counted(number: int, what: str, plural: str = "") -> str:
    """`1 video`, `2 videos`; `plural` where it is not `what` with an s."""
    return f"{number} {what if number == 1 else plural or f'{what}s'}"
