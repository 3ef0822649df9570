"""Secrets taken out of texts that are shown or stored: messages, results, `job.yaml`, the gallery,
and logs and tracebacks, which are written here.

A secret is what a location carries to prove who asks (`user:password@`, the signature in a query),
what names itself one (`token=...`, `Authorization: Bearer ...`), what has the form of a known key,
and the value of an environment variable with such a name. What is left shows which secret it was.
"""

from __future__ import annotations

import json
import sys
import threading
import traceback
from contextlib import suppress
from typing import Any, TypeVar

from pipeline.redaction.environment import secrets
from pipeline.redaction.patterns import HIDDEN, PATTERNS

__all__ = [
    "HIDDEN",
    "has_hidden",
    "log",
    "log_error",
    "redacted",
    "redacted_values",
    "safe_end_of",
    "safe_tracebacks",
    "say",
    "say_json",
]

Text = TypeVar("Text", str, None, str | None)


def redacted(text: Text) -> Text:
    """A text without the secrets in it; itself where there are none."""
    if not text:
        return text
    safe: str = text
    for value in secrets():
        safe = safe.replace(value, HIDDEN)
    lower = safe.lower()
    for pattern in PATTERNS:
        if any(hint in lower for hint in pattern.hints):
            safe = pattern.finds.sub(pattern.leaves, safe)
    return safe


def safe_end_of(log: str, length: int, *, whole: bool) -> str:
    """The last lines of a log without the secrets in it.

    What stands before the first whole line is left out: it may be the rest of a secret, whose name
    is gone.

    Args:
        log: much more than is wanted of it, since secrets make most of some lines.
        length: characters at most.
        whole: whether it is the log from its beginning on.
    """
    if not whole:
        _, line_end, lines = log.partition("\n")
        log = lines if line_end else "".join(log.split(None, 1)[1:])
    safe = redacted(log).strip()
    if len(safe) <= length:
        return safe
    end = safe[-length:]
    return end.partition("\n")[2] or end


def say(text: str, *, problem: bool = False) -> None:
    """Print a line for the user of a command; a problem goes to standard error."""
    print(redacted(text), file=sys.stderr if problem else sys.stdout, flush=True)


def redacted_values(value: Any) -> Any:
    """Plain values without the secrets in their texts; tuples become lists."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {name: redacted_values(one) for name, one in value.items()}
    return [redacted_values(one) for one in value] if isinstance(value, list | tuple) else value


def say_json(value: Any, *, indent: int | None = None) -> None:
    """Print plain values for a program. What a secret is taken out of stays JSON: in its text one
    could seem to go on beyond the value that it is in."""
    print(json.dumps(redacted_values(value), indent=indent, ensure_ascii=False), flush=True)


def log(text: str) -> None:
    """Write a text to this process' log.

    What only informs must not fail the work: the log of a rank lies in the folder for temporary
    files, whose disk may be full.
    """
    with suppress(OSError, ValueError):  # which says that it is closed
        print(redacted(text), file=sys.stderr, flush=True)


def log_error(error: BaseException) -> None:
    """Write an exception to this process' log, and where it and its causes were raised."""
    log("".join(traceback.format_exception(error)).rstrip())


def safe_tracebacks() -> None:
    """From here on, an exception that ends this process or a thread is logged without secrets."""
    sys.excepthook = lambda kind, error, trace: log_error(error)
    threading.excepthook = _of_a_thread


def _of_a_thread(what: threading.ExceptHookArgs) -> None:
    """As Python's own, which says nothing of a thread that meant to end."""
    if what.exc_value is not None and not isinstance(what.exc_value, SystemExit):
        log_error(what.exc_value)


def has_hidden(location: str) -> bool:
    """Whether a secret was taken out of a location, so that nothing can open it."""
    return HIDDEN in location
