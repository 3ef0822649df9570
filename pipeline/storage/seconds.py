"""How long storage is waited for: what two environment variables say, and what holds without."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

TIMEOUT = "RETAKE_STORAGE_TIMEOUT_S"
TIMEOUT_S = 30.0
"""Seconds without a byte after which a connection counts as broken."""
PATIENCE = "RETAKE_STORAGE_PATIENCE_S"
"""Seconds from the first failure of an operation until the last time that it is tried."""


def timeout_s() -> float:
    return _read(TIMEOUT, TIMEOUT_S, _is_timeout)


def patience_s(default: float) -> float:
    return _read(PATIENCE, default, _is_patience)


def wrong_seconds() -> str | None:
    """What is wrong with the environment variables, for a person; None for nothing.

    Where they are used it is too late to say so: the trouble of a storage would be hidden by it.
    So commands ask here when they start, and a value that is no number of seconds counts for none.
    """
    for name, fits, expected in (
        (TIMEOUT, _is_timeout, "a number of seconds above 0, such as 30"),
        (PATIENCE, _is_patience, "a number of seconds, such as 120, or 0"),
    ):
        text = os.environ.get(name)
        if text and not fits(_number(text)):
            return f"the environment variable {name} is {text!r}; expected {expected}"
    return None


def _read(name: str, default: float, fits: Callable[[float], bool]) -> float:
    value = _number(os.environ.get(name) or "")
    return value if fits(value) else default


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _is_timeout(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _is_patience(value: float) -> bool:
    return math.isfinite(value) and value >= 0
