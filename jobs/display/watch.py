"""`retake status --watch`: shows a run from outside until it ends."""

from __future__ import annotations

import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from jobs.display.console import print_line
from jobs.display.seen import line, picture
from jobs.display.ticker import LINE_EVERY_S
from jobs.status.look import Seen, look
from pipeline.storage import Folder

EVERY_S = 3.0
"""Between two looks: a run writes every 10 s, and at each phase."""


def watch_run(output: Folder, console: Console) -> Seen:
    """Show a run as long as it lives.

    On a terminal the picture changes in place; else there is a line for each phase, and one every
    `LINE_EVERY_S`.

    Returns:
        What was seen last.
    """
    show = _OnTerminal(console) if console.is_terminal else _AsLines(console)
    with show:
        while True:
            seen = look(output, show.say)
            if seen.life != "alive":
                return seen
            show(seen)
            time.sleep(EVERY_S)


class _AsLines:
    def __init__(self, console: Console) -> None:
        self.console = console
        self._phase, self._at = "", 0.0

    def __enter__(self) -> None: ...

    def __exit__(self, *details: object) -> None: ...

    def say(self, text: str) -> None:
        print_line(self.console, text)

    def __call__(self, seen: Seen) -> None:
        phase = seen.status.phase if seen.status else ""
        if phase != self._phase or time.monotonic() - self._at >= LINE_EVERY_S:
            self.say(line(seen))
            self._phase, self._at = phase, time.monotonic()


class _OnTerminal:
    def __init__(self, console: Console) -> None:
        self._seen: Seen | None = None
        self._text = ""
        self._live = Live(
            console=console, refresh_per_second=1, transient=True, get_renderable=self._picture
        )

    def __enter__(self) -> None:
        self._live.__enter__()

    def __exit__(self, *details: object) -> None:
        self._live.__exit__(None, None, None)

    def say(self, text: str) -> None:
        self._text = text

    def __call__(self, seen: Seen) -> None:
        self._seen, self._text = seen, ""

    def _picture(self) -> RenderableType:
        parts: list[RenderableType] = [picture(self._seen, None)] if self._seen else []
        return Group(*parts, Text(self._text or "Ctrl-C ends this view; the run goes on", "dim"))
