"""The command `retake`. Torch and Ray are imported where a command needs them, so help is quick."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from jobs.spec import JobSpec

EXIT_DONE = 0
EXIT_CANNOT_RUN = 1
EXIT_USAGE = 2
EXIT_SOME_FAILED = 3

app = typer.Typer(
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


@app.command()
def run(job: JobFile, set_: Changes = None) -> None:
    """Run a job. Run it again to do what is still owed.

    Exit status: 0 all done, 3 some edits failed, 1 the job could not run, 2 wrong usage.
    """
    from jobs.spec import load_job

    raise typer.Exit(execute(lambda: load_job(job, set_ or [])))


@app.command()
def validate(job: JobFile, set_: Changes = None) -> None:
    """Check a job and its manifest without running it."""
    from jobs.display import show_plan
    from jobs.spec import load_job

    def check() -> int:
        from jobs.run import prepare

        show_plan(prepare(load_job(job, set_ or [])))
        return EXIT_DONE

    raise typer.Exit(_reported(check))


@app.command()
def demo(
    output: Annotated[str, typer.Option(help="Where to write the demo.")] = "demo",
    set_: Changes = None,
) -> None:
    """Draw a few clips, edit them with the embedded checkpoint, and write a report."""

    def demo_job() -> JobSpec:
        from jobs.demo.job import write_demo
        from jobs.spec import parse_job

        return parse_job(write_demo(Path(output)), set_ or [], source="the demo's job")

    status = execute(demo_job)
    if status != EXIT_CANNOT_RUN:
        _reported(lambda: gallery(str(Path(output) / "output")))
    raise typer.Exit(status)


@app.command()
def manifest(
    source: Annotated[
        str, typer.Argument(help="A folder of videos, or a CSV, JSON or JSONL file.")
    ],
    to: Annotated[str, typer.Argument(help="The manifest to write (Parquet).", metavar="MANIFEST")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="For a folder: a prompt for every video; may be repeated."),
    ] = None,
    videos: Annotated[
        str | None, typer.Option(help="The folder that the videos' names are looked up in.")
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", help="folder, table, tgve, balancecc, five or ivebench; guessed by default."
        ),
    ] = None,
    pattern: Annotated[str, typer.Option(help="For a folder: which files.")] = "**/*",
    skip_bad: Annotated[
        bool, typer.Option(help="Leave bad entries out instead of stopping.")
    ] = False,
) -> None:
    """Make a manifest from a folder of videos, a table, or a published benchmark's file."""

    def convert() -> int:
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

    raise typer.Exit(_reported(convert))


@app.command()
def report(
    output: Annotated[str, typer.Argument(help="The output folder of a job, a path or URI.")],
) -> None:
    """Write a gallery of a job's results: `<output>/report/index.html`."""

    raise typer.Exit(_reported(lambda: gallery(output)))


def gallery(output: str) -> int:
    """Write the report of an output folder and say where it is."""
    from jobs.report import write_report
    from jobs.spec import JobError

    try:
        print(f"report   {write_report(output)}")
    except FileNotFoundError as error:
        raise JobError(str(error)) from error
    return EXIT_DONE


@app.command()
def metrics(
    output: Annotated[str, typer.Argument(help="The output folder of a job, a path or URI.")],
    clip: Annotated[
        str | None, typer.Option(metavar="PATH", help="A CLIP model: agreement with the prompt.")
    ] = None,
    dino: Annotated[
        str | None, typer.Option(metavar="PATH", help="A DINO model: agreement with the source.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
) -> None:
    """Add numbers that need another model to the results. Not while a job writes to the folder.

    PATH is a folder or Hub name that transformers opens. Edits that were measured before with the
    same model are left alone. Exit status: 3 if some edits could not be read.
    """

    def measure() -> int:
        from rich.console import Console

        from jobs.display import Ticker
        from jobs.measure import measure_results

        models = {"clip": clip, "dino": dino}
        with Ticker(Console()) as ticker:
            measured = measure_results(
                output,
                {kind: location for kind, location in models.items() if location},
                device,
                lambda so_far: ticker(f"{so_far.edits} edits measured"),
            )
        print(f"{measured.edits} edits measured, {measured.before} had been before")
        if measured.unreadable:
            print(f"{measured.unreadable} not readable: {measured.reason}", file=sys.stderr)
        return EXIT_SOME_FAILED if measured.unreadable else EXIT_DONE

    raise typer.Exit(_reported(measure))


@app.command()
def gc(
    output: Annotated[str, typer.Argument(help="The output folder of a job, a path or URI.")],
    keep: Annotated[
        str, typer.Option(help="As trajectory.keep: always, or until_done to delete more.")
    ] = "always",
) -> None:
    """Delete stored trajectories that no result needs. Not while a job writes to the folder.

    With `--keep always` those go that no result names; with `until_done` also those whose edits are
    all done (a new prompt then inverts the video again).
    """

    def collect() -> int:
        from cluster.garbage import KEEP, collect_garbage
        from jobs.spec import JobError, absolute
        from pipeline.storage import Folder

        if keep not in KEEP:
            raise JobError(f"--keep {keep!r}: expected one of {', '.join(KEEP)}")
        removed = collect_garbage(Folder(absolute(output)), keep)
        print(
            f"{len(removed)} trajectories cleaned up, {sum(removed.values()) / 1e6:.1f} MB deleted"
        )
        return EXIT_DONE

    raise typer.Exit(_reported(collect))


def execute(make_spec: Callable[[], JobSpec]) -> int:
    """Prepare and run a job, show it, and return the exit status."""

    def work() -> int:
        import time

        from rich.console import Console

        from cluster.garbage import tidy
        from jobs.display import Progress, show_end, show_plan
        from jobs.run import owed, prepare, run

        started = time.monotonic()
        console = Console()
        prepared = prepare(make_spec())
        show_plan(prepared, console)
        what = owed(prepared)
        counts = None
        if what.edits:
            with Progress(console, what.edits) as progress:
                counts = run(prepared, what, progress.show)
        else:
            tidy(prepared.job)
        show_end(counts, prepared, what, time.monotonic() - started, console)
        return EXIT_SOME_FAILED if counts and counts.failed else EXIT_DONE

    return _reported(work)


def main() -> None:
    app()


def _reported(work: Callable[[], int]) -> int:
    """Run a command; a problem that a user can mend is a message, not a traceback."""
    from cluster.job import CannotRun
    from jobs.manifest.checks import ManifestError
    from jobs.manifest.sources import ConvertError
    from jobs.spec import JobError

    try:
        return work()
    except (JobError, ManifestError, ConvertError, CannotRun) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
    return EXIT_CANNOT_RUN


if __name__ == "__main__":
    main()
