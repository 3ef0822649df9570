"""What a person sees of a run while it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from jobs.display.console import print_line
from jobs.display.table import table_of
from jobs.display.ticker import Ticker
from jobs.display.words import duration, per_time
from jobs.errors import counted
from jobs.status.phases import EDITING, ENCODING, INVERTING, LOADING
from jobs.status.record import Status
from jobs.status.state import RunState
from pipeline.redaction import redacted

if TYPE_CHECKING:
    from cluster.progress import Counts


class Progress(Ticker):
    """Shows the phases of a run, and counts as they grow: a table on a terminal, else lines.

    Args:
        state: of the run; gets all that is shown.
    """

    def __init__(self, console: Console, state: RunState | None = None) -> None:
        self.state = state or RunState()
        super().__init__(console)

    def phase(self, text: str) -> None:
        self.state.phase(redacted(text))
        super().phase(text)

    def show(self, counts: Counts) -> None:
        """Take over the counts; a new phase is reported at once."""
        before = self.state.status().phase
        for note in self.state.take(counts):
            self.say(f"note: {note}")
        self._show(before)

    def stopping(self, text: str) -> None:
        """The run was asked to end; `text` is what it waits for."""
        before = self.state.status().phase
        self.state.stops(text)
        self._show(before)

    def say(self, text: str) -> None:
        """Print a line above what changes."""
        print_line(self.console, text)

    def note(self, text: str) -> None:
        """Print what a user should know, and need not act on."""
        self.state.note(text)
        self.say(f"note: {text}")

    def _show(self, before: str) -> None:
        status = self.state.status()
        text = line_of(status)
        if status.phase == before:
            self(text)
        else:
            super().phase(text)

    def _picture(self) -> RenderableType:
        status = self.state.status()
        if not status.stages:
            return super()._picture()
        parts = [status.phase, f": {status.waiting_for}" if status.waiting_for else ""]
        since = f" (for {duration(status.phase_s)})"
        self._spinner.update(text=Text(redacted("".join([*parts, since]))))
        return Group(Text(), self._spinner, Padding(table_of(status), (0, 0, 0, 2)))


def line_of(status: Status) -> str:
    """How a run is doing in one line: `editing: 4 of 10 edits, 2.0 edits/min`."""
    parts = ", ".join(_parts(status))
    return f"{status.phase}: {parts}" if parts else status.phase


def _parts(status: Status) -> Iterator[str]:
    phase, working = status.phase, status.phase in (LOADING, ENCODING, INVERTING, EDITING)
    if status.waiting_for:
        yield status.waiting_for
    if not working and not status.stages:
        yield from _of_scores(status)
        return
    if phase in (INVERTING, LOADING) and status.prompts:
        yield f"{counted(status.prompts, 'prompt')} encoded"
    if phase in (ENCODING, INVERTING):
        yield f"for {counted(status.edits or 0, 'edit')}"
    if phase == EDITING or not working:
        yield f"{status.made} of {counted(status.edits or 0, 'edit')}"
    if status.failed:
        yield f"{status.failed} failed"
    if status.inverted:
        yield f"{counted(status.inverted, 'video')} inverted"
    yield from _of_scores(status)
    if phase == EDITING and status.edits_per_s and status.pending:
        yield per_time(status.edits_per_s)
    if phase == EDITING and status.left_s is not None:
        yield f"about {duration(status.left_s)} left"


def _of_scores(status: Status) -> Iterator[str]:
    if status.to_score:
        yield f"{status.scored} of {status.to_score} scored"
