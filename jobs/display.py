"""What a person sees of a run: a line that changes on a terminal, else log lines; and the end."""

from __future__ import annotations

import io
import os
import shlex
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from jobs.errors import counted
from pipeline.redaction import redacted

if TYPE_CHECKING:
    from cluster.pending.rows import PendingRows
    from cluster.progress import Counts, Failure
    from jobs.measure import Measured
    from jobs.prepare import Prepared

LINE_EVERY_S = 20.0
"""Without a terminal, the time between two lines, whether or not something changed."""
WINDOW_S = 300.0
"""The rate is that of the edits of so many seconds, or of the last that came before these."""
ENOUGH = 3
"""From so many edits on there is a rate."""
FAILURES_SHOWN = 5
MESSAGE_LENGTH = 200


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

    def _picture(self) -> Spinner | Text:
        self._spinner.update(text=Text(self.line()))
        return self._spinner if self._text else Text()

    def _print_lines(self) -> None:
        while not self._ended.wait(LINE_EVERY_S):
            if self._text:
                self._print(self.line())

    def _print(self, text: str) -> None:
        _print_line(self.console, text)


class Rate:
    """Edits a second, of the last ones.

    Edits come in bursts, those of a group together and of all groups about together. So the rate is
    counted from one arrival to another, and over several of them where they are near.
    """

    def __init__(self) -> None:
        self.arrivals: deque[tuple[float, int]] = deque()
        """When edits came, and how many there were then; the first is the start, with none."""

    def count(self, now: float, edits: int) -> None:
        """There are so many edits now. The first call is the start."""
        if not self.arrivals or edits > self.arrivals[-1][1]:
            self.arrivals.append((now, edits))
        while len(self.arrivals) > 1 and self.arrivals[1][0] <= self.arrivals[-1][0] - WINDOW_S:
            self.arrivals.popleft()

    def per_s(self, now: float) -> float | None:
        """None where it cannot be known yet. It falls when edits stay away for long."""
        if len(self.arrivals) < 2:
            return None
        (first, before), (last, edits) = self.arrivals[0], self.arrivals[-1]
        span = max(last - first, now - last)
        return (edits - before) / span if edits - before >= ENOUGH and span else None


class Progress(Ticker):
    """Shows the phases of a run, and counts as they grow.

    Attributes:
        edits: how many there are to do; what was done before is not among them.
    """

    def __init__(self, console: Console, edits: int = 0) -> None:
        super().__init__(console)
        self.edits = edits
        self._phase = ""
        self._notes = 0
        self._rate = Rate()

    def show(self, counts: Counts) -> None:
        """Take over the counts; a new phase is said at once."""
        for note in counts.notes[self._notes :]:
            self.note(note)
        self._notes = len(counts.notes)
        now = time.monotonic()
        if counts.inverted:
            self._rate.count(now, counts.edited)
        phase = phase_of(counts)
        text = f"{phase}: {', '.join(self._parts(phase, counts, now))}"
        if phase == self._phase:
            self(text)
        else:
            self._phase = phase
            self.phase(text)

    def say(self, text: str) -> None:
        """Print a line above the one that changes."""
        _print_line(self.console, text)

    def note(self, text: str) -> None:
        """Print what a user should know, and need not act on."""
        self.say(f"note: {text}")

    def _parts(self, phase: str, counts: Counts, now: float) -> Iterator[str]:
        if phase == "loading":
            ready, total = (sum(getattr(g, n) for g in counts.groups) for n in ("ready", "total"))
            waiting = [g for g in counts.groups if g.ready < g.total]
            names = [g.stage + (f" {g.ready} of {g.total}" * (g.total > 1)) for g in waiting]
            yield f"{ready} of {counted(total, 'group')}, waiting for {' and '.join(names)}"
        if phase in ("inverting", "loading") and counts.prompts:
            yield f"{counted(counts.prompts, 'prompt')} encoded"
        if phase in ("encoding prompts", "inverting"):
            yield f"for {counted(self.edits, 'edit')}"
        if phase == "editing":
            yield f"{counts.edited} of {counted(self.edits, 'edit')}"
        if counts.failed:
            yield f"{counts.failed} failed"
        if counts.inverted:
            yield f"{counted(counts.inverted, 'video')} inverted"
        if phase == "editing" and (rate := self._rate.per_s(now)):
            yield per_time(rate)
            if left := max(0, self.edits - counts.edited - counts.failed):
                yield f"about {duration(left / rate)} left"


def phase_of(counts: Counts) -> str:
    """What a run is doing, by what has happened so far: the stages work at the same time."""
    # Rows that the check refused have failed before any group is there.
    if not counts.edited and any(group.ready < group.total for group in counts.groups):
        return "loading"
    if counts.inverted or counts.edited:
        return "editing"
    return "inverting" if counts.prompts or counts.failed else "encoding prompts"


@contextmanager
def show_measuring() -> Iterator[Callable[[Measured], None]]:
    """Shows how many edits are measured; what it gives is to be called as they are."""
    with Ticker(console_of_a_run()) as ticker:
        yield lambda so_far: ticker(f"{counted(so_far.edits, 'edit')} measured")


def show_plan(prepared: Prepared, console: Console | None = None) -> None:
    """What a job is going to do, as found before it runs."""
    from pipeline.plan import denoising_steps, highest_stored

    console = console or SafeConsole()
    spec, info, clip, scan = prepared.spec, prepared.checkpoint, prepared.clip, prepared.scan
    levels = spec.inversion.steps
    top = highest_stored(spec.reconstruction, levels)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("manifest", f"{counted(scan.videos, 'video')}, {counted(scan.edits, 'edit')}")
    table.add_row(
        "checkpoint", f"{escape(spec.checkpoint)} (CogVideoX {info.family}, {info.fingerprint})"
    )
    table.add_row("clips", f"{clip.width}x{clip.height}, up to {prepared.most_frames} frames")
    table.add_row(
        "inversion",
        f"{spec.inversion.method}, {top} of {levels} steps, "
        f"{spec.inversion.evaluations(top)} forwards, once for each video",
    )
    how = spec.reconstruction
    steps = denoising_steps(how, levels, [how.guidance_scale])
    guided = sum(step.scales[0] > 1 for step in steps)
    table.add_row(
        "reconstruction",
        f"{len(steps)} steps from "
        f"{how.start if isinstance(how.start, str) else f'{how.start:g} of the levels'}, "
        f"reference {how.reference}, guidance {how.guidance_scale:g} in {guided} of them",
    )
    table.add_row("output", escape(redacted(prepared.job.editing.output)))
    console.print(table)
    for warning in prepared.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


def show_end(
    counts: Counts | None,
    prepared: Prepared,
    todo: PendingRows,
    part: bool,
    seconds: float,
    console: Console,
) -> None:
    """The short table at the end, what failed, and where to look."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    if counts is None:
        of_a_part = "nothing that this run takes is pending"
        of_all = "nothing is pending" + ": every edit is done" * (not todo.quarantined)
        console.print(of_a_part if part else of_all)
    else:
        table.add_row("videos inverted", str(counts.inverted))
        table.add_row("edits done", str(counts.edited))
        table.add_row("edits failed", str(counts.failed))
    if todo.before:
        table.add_row("done before", str(todo.before))
    if todo.quarantined:
        again = "--retry-quarantined gives them another chance"
        table.add_row("quarantined before", f"{todo.quarantined}, left out; {again}")
    table.add_row("time", duration(seconds))
    console.print(table)
    if counts and counts.failed:
        console.print("failed:")
        for line in failed_lines(counts.errors, counts.failures):
            _print_line(console, f"  {line}")
        _print_line(console, "  all of them: the rows of results/ with an error_code and an error")
        _print_line(console, "  what to do about each code: docs/guide.md, Error codes")
    output = prepared.job.editing.output
    _print_line(console, f"edits    {output}/edits/")
    _print_line(console, f"results  {output}/results/")
    _print_line(console, f"gallery  retake report {shlex.quote(output)}")


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


class SafeConsole(Console):
    """A console that shows no secret. The cells of a table are made safe by who fills them."""

    def __init__(self, **options: Any) -> None:
        # A name may hold what Rich takes for an emoji, as `:abc:`.
        super().__init__(emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        safe = (redacted(one) if isinstance(one, str) else one for one in objects)
        super().print(*safe, **options)


def _print_line(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)


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
