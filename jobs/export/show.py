"""What `retake export` prints."""

from __future__ import annotations

from jobs.display import Ticker, console_of_a_run
from jobs.errors import counted
from jobs.export import export
from jobs.export.formats import Settings
from jobs.export.work import Exported
from pipeline.redaction import say

SHOWN = 10


def show_export(
    output: str,
    to: str,
    format: str,
    where: str,
    all_: bool,
    validation: float,
    shard_mb: float,
    license: str,
    dry_run: bool,
    wait: bool,
) -> int:
    """Export, and say what came of it.

    Returns:
        How many pairs are left out since files of them are gone.
    """
    settings = Settings(format, where, all_, validation, shard_mb, license)
    with Ticker(console_of_a_run()) as ticker:
        exported = export(output, to, settings, dry_run=dry_run, wait=wait, on_progress=ticker)
    for line in lines_of(exported, to, dry_run):
        say(line)
    for one in exported.gone[:SHOWN]:
        say(f"left out  {one}", problem=True)
    if len(exported.gone) > SHOWN:
        say(f"left out  and {len(exported.gone) - SHOWN} more like these", problem=True)
    return len(exported.gone)


def lines_of(exported: Exported, to: str, dry_run: bool = False) -> list[str]:
    """What was written, what there is in all, and what was left out and why."""
    chosen, before = exported.chosen, exported.before
    shards = f"{counted(exported.shards, 'shard')}, {exported.bytes / 1e6:.1f} MB"
    if exported.pairs:
        done = "would be written" if dry_run else "written"
        lines = [f"export    {counted(exported.pairs, 'pair')} {done} in {shards}: {to}"]
    else:
        lines = [f"export    nothing to do: {to}" if before.pairs else "export    no pair to write"]
    if before.pairs:
        lines.append(f"before    {counted(before.pairs, 'pair')}, which stay as they are")
    split = ", ".join(f"{count} {name}" for name, count in exported.splits.items())
    lines.append(f"in all    {split}, of {counted(exported.sources, 'video')}")
    out = []
    if chosen.rejected:
        out.append(f"{chosen.rejected} that the job's rules rejected (--all takes them)")
    if chosen.undecided:
        out.append(f"{chosen.undecided} that have no scores for the job's rules yet")
    if chosen.unsettled:
        out.append(f"{chosen.unsettled} whose best candidate the job has not chosen yet")
    if chosen.outside:
        out.append(f"{chosen.outside} by --where")
    if chosen.rules and not out:
        out.append("none: the job's rules accepted all")
    if out:
        lines.append(f"left out  of {counted(chosen.done, 'edit')} done: {', '.join(out)}")
    return lines
