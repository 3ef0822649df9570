"""The command `retake`. Torch and Ray are imported where a command needs them, so help is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from jobs.errors import JobError, UserError

EXIT_DONE = 0
EXIT_CANNOT_RUN = 1
EXIT_USAGE = 2
EXIT_SOME_FAILED = 3


class Commands(TyperGroup):
    """The commands, each of which returns its exit status.

    A problem that a user can repair is a message here, for all commands, and not a traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            status = super().invoke(ctx)
        except KeyboardInterrupt:
            print("stopped; run the same command again to go on", file=sys.stderr)
            status = EXIT_CANNOT_RUN
        except Exception as error:
            from cluster.job import CannotRun

            if not isinstance(error, UserError | CannotRun):
                raise
            print(f"error: {error}", file=sys.stderr)
            status = EXIT_CANNOT_RUN
        raise typer.Exit(status)


app = typer.Typer(
    cls=Commands,
    help="Edit videos by the dataset: invert each video once, edit it many times.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

JobFile = Annotated[str, typer.Argument(help="The job file (YAML).", metavar="JOB")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a value of the job; may be repeated."),
]
Source = Annotated[str, typer.Argument(help="A folder of videos, or a CSV, JSON or JSONL file.")]
Prompts = Annotated[
    list[str] | None, typer.Option(help="For a folder: a prompt for every video; may be repeated.")
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format", help="folder, table, tgve, balancecc, five or ivebench; guessed by default."
    ),
]
Output = Annotated[str, typer.Argument(help="The output folder of a job, a path or URI.")]


@app.command()
def run(job: JobFile, set_: Changes = None) -> int:
    """Run a job. Run it again to do what is still pending.

    Exit status: 0 all done, 3 some edits failed, 1 the job could not run, 2 wrong usage.
    """
    from jobs.run import run_job
    from jobs.spec import load_job

    return _status(run_job(load_job(job, set_ or [])))


@app.command()
def validate(job: JobFile, set_: Changes = None) -> int:
    """Check a job and its manifest without running it."""
    from jobs.display import show_plan
    from jobs.prepare import prepare
    from jobs.spec import load_job

    show_plan(prepare(load_job(job, set_ or [])))
    return EXIT_DONE


@app.command()
def demo(
    output: Annotated[str, typer.Option(help="Where to write the demo.")] = "demo",
    set_: Changes = None,
) -> int:
    """Draw a few clips, edit them with the embedded checkpoint, and write a report."""
    from jobs.demo.job import write_demo
    from jobs.report import write_report
    from jobs.run import run_job
    from jobs.spec import parse_job

    spec = parse_job(write_demo(Path(output)), set_ or [], source="the demo's job")
    failed = run_job(spec)
    print(f"report   {write_report(spec.output)}")
    return _status(failed)


@app.command()
def manifest(
    source: Source,
    to: Annotated[str, typer.Argument(help="The manifest to write (Parquet).", metavar="MANIFEST")],
    prompt: Prompts = None,
    videos: Annotated[
        str | None, typer.Option(help="The folder that the videos' names are looked up in.")
    ] = None,
    format_: Format = None,
    pattern: Annotated[str, typer.Option(help="For a folder: which files.")] = "**/*",
    skip_bad: Annotated[
        bool, typer.Option(help="Leave bad entries out instead of stopping.")
    ] = False,
) -> int:
    """Make a manifest from a folder of videos, a table, or a published benchmark's file."""
    from jobs.manifest.make import make_manifest

    made = make_manifest(
        source,
        to,
        prompts=prompt or [],
        videos=videos,
        kind=format_,
        pattern=pattern,
        skip_bad=skip_bad,
    )
    for warning in made.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    edits = sum(len(row["edits"]) for row in made.rows)
    print(f"{to}: {len(made.rows)} videos, {edits} edits")
    return EXIT_DONE


@app.command()
def report(output: Output) -> int:
    """Write a gallery of a job's results: `<output>/report/index.html`."""
    from jobs.report import write_report

    print(f"report   {write_report(output)}")
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
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
) -> int:
    """Add numbers that need another model to the results. Not while a job writes to the folder.

    PATH is a folder or Hub name that transformers opens. Edits that were measured before with the
    same model are left alone. Exit status: 3 if some edits could not be read.
    """
    from jobs.display import show_measuring
    from jobs.measure import measure_results

    models = {kind: place for kind, place in {"clip": clip, "dino": dino}.items() if place}
    with show_measuring() as on_progress:
        measured = measure_results(output, models, device, on_progress)
    print(f"{measured.edits} edits measured, {measured.before} had been before")
    if measured.unreadable:
        print(f"{measured.unreadable} not readable: {measured.reason}", file=sys.stderr)
    return _status(measured.unreadable)


@app.command()
def gc(
    output: Output,
    keep: Annotated[
        str, typer.Option(help="As trajectory.keep: always, or until_done to delete more.")
    ] = "always",
) -> int:
    """Delete stored trajectories that no result needs. Not while a job writes to the folder.

    With `--keep always` those go that no result names; with `until_done` also those whose edits are
    all done (a new prompt then inverts the video again).
    """
    from cluster.garbage import KEEP, collect_garbage
    from jobs.spec import absolute
    from pipeline.storage import Folder

    if keep not in KEEP:
        raise JobError(f"--keep {keep!r}: expected one of {', '.join(KEEP)}")
    removed = collect_garbage(Folder(absolute(output)), keep)
    print(f"{len(removed)} trajectories cleaned up, {sum(removed.values()) / 1e6:.1f} MB deleted")
    return EXIT_DONE


def _status(failed: int) -> int:
    return EXIT_SOME_FAILED if failed else EXIT_DONE


def main() -> None:
    app()


if __name__ == "__main__":
    main()
