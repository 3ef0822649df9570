"""The commands that work on a job's output folder."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.commands.app import EXIT_DONE, app, status_of
from jobs.errors import counted
from jobs.options import Codes, Device, DryRun, Output, Wait
from pipeline.redaction import say


@app.command()
def report(
    output: Output,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="OTHER_OUTPUT", help="Another run's folder; edits of both side by side."
        ),
    ] = None,
    sample: Annotated[
        int, typer.Option(help="Above so many edits, show a sample of so many.")
    ] = 100_000,
) -> int:
    """Write a gallery of a job's results: `<output>/report/index.html`."""
    from jobs.report import write_report

    say(f"report   {write_report(output, compare, sample)}")
    return EXIT_DONE


@app.command()
def failures(
    output: Output,
    code: Codes = None,
    limit: Annotated[int, typer.Option(min=0, metavar="N", help="Print at most so many.")] = 20,
    to: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write all as a table: .parquet, .csv or .jsonl."),
    ] = None,
    manifest: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Write a manifest of these edits alone, which `retake run` takes."
        ),
    ] = None,
) -> int:
    """List the edits that failed or were quarantined, by error code.

    Of each edit the newest result counts. `--to` and `--manifest` write all of them, whatever
    `--limit` says. Nothing else is written, so it may be asked while a job runs.
    """
    from jobs.failures import show_failures

    show_failures(output, code or [], limit, to, manifest)
    return EXIT_DONE


@app.command()
def metrics(
    output: Output,
    clip: Annotated[
        str | None, typer.Option(metavar="PATH", help="A CLIP model: agreement with the prompt.")
    ] = None,
    dino: Annotated[
        str | None, typer.Option(metavar="PATH", help="A DINO model: agreement with the source.")
    ] = None,
    device: Device = "auto",
    wait: Wait = False,
) -> int:
    """Add numbers that need another model to the results. Not while a job writes to the folder.

    PATH is a folder or Hub name that transformers opens. Edits that were measured before with the
    same model are left alone. Exit status: 3 if some edits could not be read.
    """
    from jobs.display import show_measuring
    from jobs.measure import measure_results

    models = {kind: place for kind, place in {"clip": clip, "dino": dino}.items() if place}
    with show_measuring() as on_progress:
        measured = measure_results(output, models, device, on_progress, wait=wait)
    say(f"{counted(measured.edits, 'edit')} measured, {measured.before} had been before")
    if measured.unreadable:
        say(f"{measured.unreadable} not readable: {measured.reason}", problem=True)
    return status_of(measured.unreadable)


@app.command()
def gc(
    output: Output,
    keep: Annotated[
        str, typer.Option(help="As trajectory.keep: always, or until_done to delete more.")
    ] = "always",
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Wait = False,
) -> int:
    """Delete stored trajectories that no result needs. Not while a job writes to the folder.

    With `--keep always` those go that no result names; with `until_done` also those whose edits are
    all done (a new prompt then inverts the video again), which it asks about. The logs of the runs
    before the last 10 go too.
    """
    from jobs.clean import clean

    confirm = typer.confirm if sys.stdin.isatty() else None
    clean(output, keep, dry_run=dry_run, yes=yes, confirm=confirm, wait=wait)
    return EXIT_DONE


@app.command()
def verify(
    output: Output,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every edit.")] = False,
    dry_run: DryRun = False,
    wait: Wait = False,
) -> int:
    """Check all that an output folder holds, and mark the edits that must be made again.

    The files of all edits are listed, and every byte of results and trajectories is read. An edit
    whose file is gone, empty or another one gets a result `edit_lost`; the next run makes it again.
    Exit status: 3 if something is wrong.
    """
    from jobs.verify import verify_output

    return status_of(verify_output(output, decode=decode, dry_run=dry_run, wait=wait))
