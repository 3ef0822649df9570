"""The command `retake`. Torch and Ray are imported where a command needs them, so help is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from jobs.errors import UserError, WrongOption, counted
from jobs.one_video.options import SETTINGS_OF_AN_EDIT, EditOutput, with_settings
from jobs.options import (
    Changes,
    Device,
    DryRun,
    JobFile,
    Limit,
    Only,
    Output,
    RetryQuarantined,
    Version,
    Wait,
)
from jobs.stopping import MESSAGE, stops_by_signal
from pipeline.redaction import log_error, redacted, safe_tracebacks, say

EXIT_DONE = 0
EXIT_CANNOT_RUN = 1
EXIT_USAGE = 2
EXIT_SOME_FAILED = 3


class Commands(TyperGroup):
    """The commands, each of which returns its exit status.

    A problem that a user can repair is a message here, for all commands, and not a traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        from pipeline.storage.seconds import wrong_seconds

        with stops_by_signal() as stop:
            try:
                if wrong := wrong_seconds():
                    raise UserError(wrong)
                status = super().invoke(ctx)
            except KeyboardInterrupt:
                say(MESSAGE, problem=True)
                status = stop.status
            except Exception as error:
                from cluster.job import CannotRun
                from pipeline.errors import StorageFailed, Unreadable

                if not isinstance(error, UserError | CannotRun | Unreadable | StorageFailed):
                    if isinstance(message := getattr(error, "message", None), str):
                        vars(error)["message"] = redacted(message)  # Typer's own: wrong usage
                    raise
                say(f"error: {error}", problem=True)
                status = EXIT_USAGE if isinstance(error, WrongOption) else EXIT_CANNOT_RUN
        raise typer.Exit(status)


app = typer.Typer(
    cls=Commands,
    help="Edit videos by the dataset: invert each video once, edit it many times.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Sources = Annotated[
    list[str],
    typer.Argument(
        default_factory=list,  # not required, so that our own message says what is missing
        show_default=False,
        help="Videos, folders, globs, .txt lists, tables (CSV, TSV, JSON, JSONL, Parquet) or "
        "WebDataset tar files; one or more.",
        metavar="SOURCE",
    ),
]
Prompts = Annotated[list[str] | None, typer.Option(help="An edit of every video; may be repeated.")]
VideoColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="The table's column that names the video.")
]
PromptColumns = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="The one with the edit prompt; may be repeated."),
]
SourcePromptColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="The one that describes the source.")
]
VideosFolder = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="The folder that the videos' names are looked up in."),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="folder, list, table, webdataset, huggingface, tgve, balancecc, five or ivebench; "
        "guessed by default.",
    ),
]


@app.callback()
def retake(version: Version = False) -> None:
    pass


@app.command()
def run(
    job: JobFile,
    set_: Changes = None,
    limit: Limit = None,
    only: Only = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    retry_quarantined: RetryQuarantined = False,
) -> int:
    """Run a job. Run it again to do what is still pending.

    Ctrl-C or SIGTERM ends it in order: what runs has stop_grace_s to end; a second one ends it at
    once. Exit status: 0 all done, 3 some edits failed, 1 the job could not run, 2 wrong usage, 130
    stopped with Ctrl-C, 143 with SIGTERM.
    """
    say(f"job      {job}")  # before the imports, which take seconds
    from jobs.run import run_job
    from jobs.spec import load_job
    from jobs.trial import dry_run as show
    from jobs.trial import part_of

    spec, part = load_job(job, set_ or []), part_of(only or [], limit)
    if dry_run:
        show(spec, part, retry_quarantined=retry_quarantined)
        return EXIT_DONE
    how = {"wait": wait, "retry_quarantined": retry_quarantined}
    return _status(run_job(spec, part, **how))


@app.command(context_settings={"token_normalize_func": lambda name: name.replace("_", "-")})
@with_settings(SETTINGS_OF_AN_EDIT)
def edit(
    video: Annotated[str, typer.Argument(help="A video file, a path or URI.", metavar="VIDEO")],
    prompts: Annotated[
        list[str], typer.Argument(help="What each edit should show.", metavar="PROMPT")
    ],
    output: EditOutput = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files.")] = False,
    device: Device = "auto",
    trajectory: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="A stored one, used instead of inverting.")
    ] = None,
    keep_trajectory: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Store it there, for --trajectory.")
    ] = None,
    **settings: Any,
) -> int:
    """Edit one video, without a manifest or a job: one edit for each PROMPT.

    The edits are those of a job with the same settings, for a manifest with this VIDEO and no ids.
    """
    from jobs.one_video.edit import edit_video
    from jobs.one_video.request import Places, request_of

    places = Places(output, overwrite, trajectory, keep_trajectory)
    edit_video(request_of(video, prompts, places, device, settings))
    return EXIT_DONE


@app.command()
def init(
    job: Annotated[str, typer.Argument(help="The file to write.", metavar="[JOB]")] = "job.yaml",
) -> int:
    """Write a job file to start from, with the settings that people change first."""
    from jobs.jobfile.init import init_job

    init_job(job)
    say(f"{job}: set `manifest` and `checkpoint`, then `retake validate {job}`")
    return EXIT_DONE


@app.command()
def validate(
    job: JobFile,
    set_: Changes = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every video, as a run does.")] = False,
) -> int:
    """Check a job and every row of its manifest. Nothing runs, and nothing is written.

    Exit status: 0 nothing that would fail was found, 3 some edits would fail, 1 the job cannot run.
    """
    from jobs.spec import load_job
    from jobs.validate import validate_job

    return _status(validate_job(load_job(job, set_ or []), deep=deep))


@app.command()
def demo(
    output: Annotated[str, typer.Option(help="Where to write the demo.")] = "demo",
    set_: Changes = None,
) -> int:
    """Draw a few clips, edit them with the embedded checkpoint, and write a report."""
    if "://" in output:
        raise WrongOption(f"--output {output!r}: expected a local folder; the demo is small")
    # before the imports, which take seconds
    say(f"demo     drawing clips in {output}")
    from jobs.demo.job import write_demo
    from jobs.report import write_report
    from jobs.run import run_job
    from jobs.spec import parse_job

    spec = parse_job(write_demo(Path(output)), set_ or [], source="the demo's job")
    failed = run_job(spec)
    say(f"report   {write_report(spec.output)}")
    return _status(failed)


@app.command()
def manifest(
    sources: Sources,
    to: Annotated[
        str, typer.Argument(help="The manifest to write (.parquet).", metavar="MANIFEST")
    ],
    prompt: Prompts = None,
    video_column: VideoColumn = None,
    prompt_column: PromptColumns = None,
    source_prompt_column: SourcePromptColumn = None,
    videos: VideosFolder = None,
    format_: Format = None,
    pattern: Annotated[str, typer.Option(help="For a folder: which files.")] = "**/*",
    absolute: Annotated[
        bool, typer.Option("--absolute", help="Name videos by absolute paths.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Look whether local videos are there.")
    ] = True,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad entries out instead of stopping.")
    ] = False,
) -> int:
    """Make a manifest from videos, a table, a dataset, or a published benchmark's file.

    The last argument is the manifest; videos near it are named relative to it.
    """
    if not sources:
        example = f"retake manifest {to} manifest.parquet --prompt TEXT"
        raise typer.BadParameter(f"it is missing; write `{example}`", param_hint="MANIFEST")
    from jobs.manifest.conversion.columns import ColumnOptions
    from jobs.manifest.conversion.formats import Options
    from jobs.manifest.make import make_manifest

    columns = ColumnOptions(video_column, tuple(prompt_column or ()), source_prompt_column)
    options = Options(prompt or [], columns, videos, pattern, skip_bad)
    made = make_manifest(sources, to, options, kind=format_, whole_paths=absolute, check=check)
    for warning in made.warnings:
        say(f"warning: {warning}", problem=True)
    for note in made.notes:
        say(note)
    say(f"{to}: {counted(made.videos, 'video')}, {counted(made.edits, 'edit')}")
    say(f"next: `retake init` writes a job file; its lines are `manifest: {to}`, `output: out`")
    return EXIT_DONE


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
    return _status(measured.unreadable)


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
    all done (a new prompt then inverts the video again), which it asks about.
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

    return _status(verify_output(output, decode=decode, dry_run=dry_run, wait=wait))


def _status(failed: int) -> int:
    return EXIT_SOME_FAILED if failed else EXIT_DONE


def main() -> None:
    safe_tracebacks()
    try:
        app()
    except Exception as error:  # typer has a hook of its own for these
        log_error(error)
        sys.exit(EXIT_CANNOT_RUN)


if __name__ == "__main__":
    main()
