"""What a person sees of a run: a live line on a terminal, else log lines; and the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from cluster.dataflow import Counts
    from jobs.measure import Measured
    from jobs.prepare import Prepared
    from jobs.run import Pending

LINE_EVERY_S = 10.0
"""Without a terminal, a line at most this often."""


class Ticker:
    """One line of text that changes: in place on a terminal, else printed now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started = self.last_line = time.monotonic()
        self.last_text = ""
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        if self.console.is_terminal:
            self._live.__exit__(None, None, None)

    def __call__(self, text: str) -> None:
        if self.console.is_terminal:
            self._live.update(text)
        elif text != self.last_text and time.monotonic() - self.last_line >= LINE_EVERY_S:
            self.last_line, self.last_text = time.monotonic(), text
            self.console.print(text, soft_wrap=True, highlight=False)


class Progress(Ticker):
    """Shows counts as they grow.

    Args:
        edits: how many there are to do; what was done before is not among them.
    """

    def __init__(self, console: Console, edits: int) -> None:
        super().__init__(console)
        self.edits = edits

    def show(self, counts: Counts) -> None:
        self(self.line(counts))

    def line(self, counts: Counts) -> str:
        elapsed = max(1e-6, time.monotonic() - self.started)
        finished = counts.edited + counts.failed
        left = max(0, self.edits - finished)
        rate = finished / elapsed if finished else 0.0
        remaining = f", {duration(left / rate)} left" if rate and left else ""
        return (
            f"{counts.inverted} videos inverted · {counts.edited} of {self.edits} edits done"
            f" · {counts.failed} failed · {per_time(rate)}{remaining}"
        )


@contextmanager
def show_measuring() -> Iterator[Callable[[Measured], None]]:
    """Shows how many edits are measured; what it gives is to be called as they are."""
    with Ticker(Console()) as ticker:
        yield lambda so_far: ticker(f"{so_far.edits} edits measured")


def show_plan(prepared: Prepared, console: Console | None = None) -> None:
    """What a job is going to do, as found before it runs."""
    from pipeline.model.scheduler import schedule_from_config
    from pipeline.plan import denoising_steps, highest_stored

    console = console or Console()
    spec, info, clip = prepared.spec, prepared.checkpoint, prepared.clip
    schedule = schedule_from_config(info.scheduler, spec.inversion.steps)
    top = highest_stored(spec.reconstruction, schedule)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("manifest", f"{prepared.scan.videos} videos, {prepared.scan.edits} edits")
    table.add_row(
        "checkpoint", f"{escape(spec.checkpoint)} (CogVideoX {info.family}, {info.fingerprint})"
    )
    table.add_row("clips", f"{clip.width}x{clip.height}, up to {clip.frames} frames")
    table.add_row(
        "inversion",
        f"{spec.inversion.method}, {top} of {schedule.steps} steps, "
        f"{spec.inversion.evaluations(top)} forwards, once for each video",
    )
    how = spec.reconstruction
    steps = denoising_steps(how, schedule, [how.guidance_scale])
    guided = sum(step.scales[0] > 1 for step in steps)
    table.add_row(
        "reconstruction",
        f"{len(steps)} steps from "
        f"{how.start if isinstance(how.start, str) else f'{how.start:g} of the levels'}, "
        f"reference {how.reference}, guidance {how.guidance_scale:g} in {guided} of them",
    )
    table.add_row("output", escape(prepared.job.editing.output))
    console.print(table)
    for warning in prepared.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


def show_end(
    counts: Counts | None, prepared: Prepared, todo: Pending, seconds: float, console: Console
) -> None:
    """The short table at the end, and where the files are."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    if counts is None:
        console.print("nothing is pending: every edit is done")
    else:
        table.add_row("videos inverted", str(counts.inverted))
        table.add_row("edits done", str(counts.edited))
        table.add_row("edits failed", str(counts.failed))
        for code, count in sorted(counts.errors.items()):
            table.add_row(f"  {code}", str(count))
    before = max(0, prepared.scan.edits - todo.edits)
    if before:
        table.add_row("done before", str(before))
    table.add_row("time", duration(seconds))
    console.print(table)
    output = prepared.job.editing.output
    console.print(f"edits    {output}/edits/", soft_wrap=True, highlight=False, markup=False)
    console.print(f"results  {output}/results/", soft_wrap=True, highlight=False, markup=False)


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
