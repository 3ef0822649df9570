"""The rows of the tables in docs/inputs.md and the tests that show them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Test = TypeVar("Test", bound=Callable[..., Any])


def row(*names: str) -> Callable[[Test], Test]:
    """Says which rows of docs/inputs.md a test shows, by what stands in their first cells."""

    def mark(test: Test) -> Test:
        shown = (*getattr(test, "input_rows", ()), *names)
        test.input_rows = shown  # type: ignore[attr-defined]
        return test

    return mark
