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
    frames: Annotated[
        bool, typer.Option("--frames", help="What frames alone say: background, change, motion.")
    ] = False,
    clip: Annotated[
        str | None, typer.Option(metavar="PATH", help="A CLIP model: agreement with the prompt.")
    ] = None,
    dino: Annotated[
        str | None, typer.Option(metavar="PATH", help="A DINO model: agreement with the source.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="A model that answers in words; or a server's URL."),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model's name at that server.")
    ] = None,
    device: Device = "auto",
    wait: Wait = False,
) -> int:
    """Measure the edits of a job after the fact, as its `score` does. Not while a job writes there.

    PATH is a folder or Hub name that transformers opens. Without options it measures what the job
    asks for. Edits that were measured before in the same way are left alone; where the job has
    rules to accept edits by, they decide anew. Exit status: 3 if some edits lack a score.
    """
    from jobs.display import show_measuring
    from jobs.measure import measure_results, settings_of

    asked = settings_of(frames, clip, dino, judge, judge_model)
    with show_measuring() as on_progress:
        measured = measure_results(output, asked, device, on_progress, wait=wait)
    say(f"{counted(measured.edits, 'edit')} measured, {measured.before} had been before")
    if measured.failed:
        say(f"{measured.failed} without a score: {measured.reason}", problem=True)
    if measured.unchosen:
        say(
            f"{measured.unchosen} without a score: the best of their candidates is not chosen yet; "
            "`retake run` with the job scores and compares them",
            problem=True,
        )
    return status_of(measured.failed + measured.unchosen)


@app.command()
def accept(
    output: Output,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help='Such as "background_psnr_db >= 30"; may be repeated. By default those of the '
            "job that the folder holds.",
        ),
    ] = None,
    dry_run: DryRun = False,
    wait: Wait = False,
) -> int:
    """Decide anew which edits are accepted, by their scores. Not while a job writes to the folder.

    Nothing is measured and nothing is made: `accepted` and `rejected_for` of the results change.
    Printed is how many edits each rule rejects, how many it alone does, and of how many the number
    is missing. With `--dry-run` a job may write to the folder meanwhile.
    """
    from jobs.accept import decide
    from jobs.accept.show import lines_of

    for line in lines_of(decide(output, rule or (), dry_run=dry_run, wait=wait), dry_run=dry_run):
        say(line)
    return EXIT_DONE


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
