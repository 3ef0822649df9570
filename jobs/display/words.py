"""Times, rates and failures as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.progress import Failure

FAILURES_SHOWN = 5
MESSAGE_LENGTH = 200


def failed_lines(errors: Mapping[str, int], failures: Sequence[Failure]) -> list[str]:
    """A few failures, those of each code together, and how many more there are.

    Each code gets one line before any gets a second.
    """
    by_code: dict[str, list[Failure]] = {code: [] for code in sorted(errors)}
    for failure in failures:
        by_code[failure.code].append(failure)
    turns = [(turn, code) for code, some in by_code.items() for turn in range(len(some))]
    shown = sorted(turns)[:FAILURES_SHOWN]
    lines = []
    for code, some in by_code.items():
        some = some[: sum(one == code for _, one in shown)]
        for failure in some:
            names = "/".join(name for name in (failure.video_id, failure.edit_id) if name)
            message = failure.message
            if len(message) > MESSAGE_LENGTH:
                message = f"{message[:MESSAGE_LENGTH]}…"
            lines.append(f"{names or 'a row without an id'}  {code}  {message}")
        if more := errors[code] - len(some):
            lines.append(f"{more} more with {code}" if some else f"{more} with {code}")
    return lines


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `5 h 12 min`, `3 d 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def per_time(rate: float) -> str:
    """A rate of edits a second in the unit that makes it readable."""
    for unit, seconds in (("s", 1), ("min", 60), ("h", 3600)):
        if rate * seconds >= 1:
            return f"{rate * seconds:.1f} edits/{unit}"
    return f"{rate * 86400:.1f} edits/d"
