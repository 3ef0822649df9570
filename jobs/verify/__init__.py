"""`retake verify`: all that an output folder holds is checked; what is lost is made again."""

from __future__ import annotations

from contextlib import ExitStack

from rich.console import Console

from cluster.output.lease import held
from cluster.output.lost import mark
from cluster.output.naming import after, run_name, runs_with_results
from cluster.output.verify import Verified, verify
from cluster.results.damaged import setter_aside
from cluster.results.parts import part_names
from jobs.display import Ticker, console_of_a_run
from jobs.errors import JobError, counted
from jobs.spec import absolute
from pipeline.storage import Folder

SHOWN = 10


def verify_output(location: str, *, decode: bool, dry_run: bool, wait: bool = False) -> int:
    """Check an output folder, and mark the edits that must be made again.

    Args:
        location: the output folder of a job, a path or URI.
        decode: decode every edit.
        dry_run: mark nothing, and leave damaged files of results where they are; it may be done
            while a run writes to the folder.
        wait: for a run that writes to the folder; else that is an error.

    Returns:
        How many things are wrong.

    Raises:
        JobError: the folder holds no results.
        CannotRun: a run writes to the folder.
        Unreadable: storage does not give a file.
    """
    output = Folder(absolute(location))
    if not part_names(output):
        raise JobError(
            f"{output.uri}: no rows in results/*.parquet; give the folder that the job file calls "
            "`output`, after a run"
        )
    console = console_of_a_run()
    with ExitStack() as stack:
        ticker = stack.enter_context(Ticker(console))
        if not dry_run:
            by = "retake verify"
            stack.enter_context(held(output, "", wait=wait, on_wait=ticker.phase, command=by))
        found = verify(output, decode=decode, on_progress=ticker)
        if not dry_run:
            _put_right(output, found, console)
    _show(found, console, decode=decode)
    return found.problems


def _put_right(output: Folder, found: Verified, console: Console) -> None:
    """Set damaged results aside, and mark lost edits."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    set_aside = setter_aside(say)
    for damaged in found.results:
        set_aside(damaged)
    if found.lost:
        run = after(run_name(), runs_with_results(output))
        marked = mark(output, run, found.lost)
        say(f"{counted(marked, 'edit')} marked as `edit_lost`: made again by the next run")


def _show(found: Verified, console: Console, *, decode: bool) -> None:
    looked = "decoded" if decode else "looked for; --decode reads them"
    lines = [
        f"edits         {found.edits} {looked}",
        f"trajectories  {found.trajectories} read, {found.bytes / 1e6:.1f} MB",
    ]
    if found.logs:
        lines.append(
            f"logs          of {counted(found.logs, 'run')}, {found.log_bytes / 1e6:.1f} MB"
        )
    wrong = [
        *map(str, found.results),
        *(f"{one.output} {one.why}" for one in found.lost),
        *found.damaged,
    ]
    if not wrong:
        lines.append("nothing is wrong")
    lines += [f"  {text}" for text in wrong[:SHOWN]]
    if len(wrong) > SHOWN:
        lines.append(f"  and {len(wrong) - SHOWN} more")
    if found.damaged:
        lines.append("A damaged trajectory is made again when an edit next needs it")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
