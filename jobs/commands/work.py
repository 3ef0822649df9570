"""The commands that make edits, and what goes before them: the job file and its check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.commands.app import EXIT_DONE, app, status_of
from jobs.errors import WrongOption
from jobs.one_video.options import SETTINGS_OF_AN_EDIT, EditOutput, with_settings
from jobs.options import (
    Changes,
    Codes,
    Device,
    DryRun,
    JobFile,
    Limit,
    Only,
    RetryFailed,
    RetryQuarantined,
    Wait,
)
from pipeline.redaction import say


@app.command()
def run(
    job: JobFile,
    set_: Changes = None,
    limit: Limit = None,
    only: Only = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    retry_failed: RetryFailed = False,
    code: Codes = None,
    retry_quarantined: RetryQuarantined = False,
) -> int:
    """Run a job. Run it again to do what is still pending.

    Ctrl-C or SIGTERM ends it in order: what runs has stop_grace_s to end; a second one ends it at
    once. Exit status: 0 all done, 3 some edits failed, 1 the job could not run, 2 wrong usage, 130
    stopped with Ctrl-C, 143 with SIGTERM.
    """
    say(f"job      {job}")  # before the imports, which take seconds
    from jobs.failures import failed_of
    from jobs.run import run_job
    from jobs.spec import load_job
    from jobs.trial import dry_run as show
    from jobs.trial import part_of

    failed = failed_of(retry_failed, code or [], retry_quarantined)
    spec, part = load_job(job, set_ or []), part_of(only or [], limit, failed)
    retry_quarantined |= part is not None and part.has_quarantined
    if dry_run:
        show(spec, part, retry_quarantined=retry_quarantined)
        return EXIT_DONE
    how = {"wait": wait, "retry_quarantined": retry_quarantined}
    return status_of(run_job(spec, part, **how))


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

    return status_of(validate_job(load_job(job, set_ or []), deep=deep))


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
    return status_of(failed)
