"""What a run is going to do, and how it went."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.accept import measured_kinds
from jobs.display.console import SafeConsole, print_line
from jobs.display.words import duration, failed_lines
from jobs.errors import counted
from pipeline.redaction import redacted

NUMBERS = ("videos inverted", "edits done", "edits failed")

if TYPE_CHECKING:
    from cluster.pending.rows import PendingRows
    from cluster.progress import Counts, Scored
    from jobs.prepare import Prepared


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
    guided = sum((step.scales[0] or 0) > 1 for step in steps)
    table.add_row(
        "reconstruction",
        f"{len(steps)} steps from "
        f"{how.start if isinstance(how.start, str) else f'{how.start:g} of the levels'}, "
        f"reference {how.reference}, guidance {how.guidance_scale:g} in {guided} of them",
    )
    if kinds := measured_kinds(spec.score):
        table.add_row("scores", ", ".join(kinds))
    if spec.accept:
        table.add_row("accept", escape("; ".join(spec.accept)))
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
    if counts is None:
        of_a_part = "nothing that this run takes is pending"
        of_all = "nothing is pending" + ": every edit is done" * (not todo.quarantined)
        console.print(of_a_part if part else of_all)
    made = (counts.inverted, counts.edited, counts.failed) if counts else None
    console.print(end_table(made, todo.before, todo.quarantined, seconds))
    output = prepared.job.editing.output
    for line in scores_lines(counts.scores if counts else None):
        print_line(console, line)
    if counts and counts.failed:
        console.print("failed:")
        for line in failed_lines(counts.errors, counts.failures):
            print_line(console, f"  {line}")
        print_line(console, f"  all of them: retake failures {shlex.quote(output)}")
        print_line(console, "  what to do about each code: docs/guide.md, Error codes")
    print_line(console, f"edits    {output}/edits/")
    print_line(console, f"results  {output}/results/")
    print_line(console, f"gallery  retake report {shlex.quote(output)}")


def scores_lines(scores: Scored | None) -> Iterator[str]:
    """What a run leaves to do of its scoring."""
    if scores and scores.with_errors:
        yield (
            f"of {counted(scores.with_errors, 'edit')} some score could not be measured; the "
            "column `scores` says why. The next run tries what may go well then"
        )
    if scores and scores.missing:
        yield (
            f"without scores: {counted(scores.missing, 'edit')}: {scores.trouble}. The edits are "
            "stored; run the same command again to score them"
        )


def end_table(
    made: tuple[int, int, int] | None, before: int, quarantined: int, seconds: float
) -> Table:
    """What came of a run.

    Args:
        made: videos inverted, edits done, edits failed; None where nothing was pending.
        before, quarantined: edits that earlier runs made, and gave up.
    """
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, number in zip(NUMBERS, made or (), strict=False):
        table.add_row(name, str(number))
    if before:
        table.add_row("done before", str(before))
    if quarantined:
        again = "--retry-quarantined gives them another chance"
        table.add_row("quarantined before", f"{quarantined}, left out; {again}")
    table.add_row("time", duration(seconds))
    return table
