"""The consoles that commands print on: they show no secret, and fail no run."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from rich.console import Console

from pipeline.redaction import redacted


class Unfailing(io.TextIOBase):
    """Standard output that a run shows its progress on, and that may fail without ending it.

    A disk that is full of logs, or a reader of a pipe that has gone, is no reason to stop editing.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        with self._going_on():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._going_on():
            self._stream.flush()

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # for good; Python itself would fail with what is left, at the end
            with suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
        except OSError:
            pass


def console_of_a_run() -> Console:
    """The console of a command that works for long, whose output only informs."""
    return SafeConsole(file=cast(TextIO, Unfailing(sys.stdout)))


class SafeConsole(Console):
    """A console that shows no secret. The cells of a table are made safe by who fills them."""

    def __init__(self, **options: Any) -> None:
        # A name may hold what Rich takes for an emoji, as `:abc:`.
        super().__init__(emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        safe = (redacted(one) if isinstance(one, str) else one for one in objects)
        super().print(*safe, **options)


def print_line(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
