"""What changes while a command works: in place on a terminal, else as lines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from jobs.display.console import console_of_a_run, print_line
from jobs.display.words import duration
from jobs.errors import counted
from pipeline.redaction import redacted

if TYPE_CHECKING:
    from jobs.measure import Measured

LINE_EVERY_S = 20.0
"""Without a terminal, the time between two lines, whether or not something changed."""


class Ticker:
    """One line of text that changes: in place on a terminal, else printed now and then.

    Both are done by a thread, so that a caller which is busy or waits looks alive too. Where the
    text does not change, the time since it last did does.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._text, self._since = "", time.monotonic()
        self._ended = threading.Event()
        self._lines = threading.Thread(target=self._print_lines, daemon=True)
        self._spinner = Spinner("dots")
        self._live = Live(
            console=console, refresh_per_second=4, transient=True, get_renderable=self._picture
        )

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.__enter__()
        else:
            self._lines.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self.console.is_terminal:
            self._live.__exit__(None, None, None)
        else:
            self._ended.set()
            self._lines.join()

    def __call__(self, text: str) -> None:
        """Change the line."""
        text = redacted(text)
        if text != self._text:
            self._text, self._since = text, time.monotonic()

    def phase(self, text: str) -> None:
        """Change the line; without a terminal, print it at once."""
        self(text)
        if not self.console.is_terminal:
            self._print(text)

    def line(self) -> str:
        """The line as it is now."""
        still = time.monotonic() - self._since
        return f"{self._text} (for {duration(still)})" if self._text and still >= 5 else self._text

    def _picture(self) -> RenderableType:
        self._spinner.update(text=Text(self.line()))
        return self._spinner if self._text else Text()

    def _print_lines(self) -> None:
        while not self._ended.wait(LINE_EVERY_S):
            if self._text:
                self._print(self.line())

    def _print(self, text: str) -> None:
        print_line(self.console, text)


@contextmanager
def show_measuring() -> Iterator[Callable[[Measured], None]]:
    """Shows how many edits are measured; what it gives is to be called as they are."""
    with Ticker(console_of_a_run()) as ticker:
        yield lambda so_far: ticker(
            f"{so_far.edits + so_far.failed} of {counted(so_far.total, 'edit')} measured"
        )
