"""The commands that look at a run from outside, and ask it to end."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.submission.ids import is_job_id
from jobs.commands.app import EXIT_CANNOT_RUN, EXIT_DONE, EXIT_SOME_FAILED, app
from jobs.errors import WrongOption
from jobs.submission.options import Address, TokenFile, check_folder
from pipeline.redaction import say, say_json

if TYPE_CHECKING:
    from cluster.submission.submitted import SubmittedJob
    from pipeline.storage import Folder

Target = Annotated[
    str,
    typer.Argument(
        help="The output folder of a job, a path or URI; or the id of a submitted job.",
        metavar="OUTPUT|JOB_ID",
    ),
]
WIDTH = 120
"""Of what is printed where there is no terminal."""


@app.command()
def status(
    target: Target,
    json_: Annotated[bool, typer.Option("--json", help="Print it for a program.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it until the run ends.")] = False,
    address: Address = None,
    token_file: TokenFile = None,
) -> int:
    """Show how a run is doing, from its output folder alone; of a JOB_ID, what its cluster says.

    Exit status: 0 it runs, or ended well; 3 it ended with failed edits; 1 it was stopped or killed,
    could not go on, or no run is known.
    """
    if watch and json_:
        raise WrongOption("--watch --json: expected one of them; a program asks again and again")
    if is_job_id(target):
        if watch:
            raise WrongOption(
                f"--watch is for an output folder; `retake logs {target} --follow` follows a job"
            )
        return _job_status(target, address, token_file, json_)
    check_folder(target, address, token_file)
    from jobs.display.console import console_of_a_run
    from jobs.display.seen import as_values, exit_status, picture
    from jobs.display.watch import watch_run
    from jobs.status.look import look
    from jobs.status.totals import totals_of

    output = _output(target)
    if watch:
        seen = watch_run(output, console_of_a_run())
    else:
        seen = look(output, lambda text: say(text, problem=True))
    totals = totals_of(output) if seen.status is None else None
    if json_:
        say_json(as_values(seen, totals), indent=1)
    else:
        console = console_of_a_run()
        if not console.is_terminal:
            console.width = WIDTH
        console.print(picture(seen, totals))
    return exit_status(seen, totals)


@app.command()
def stop(
    target: Target,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Ask it, and do not wait until it has ended.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Wait so long at most.", min=1.0)
    ] = None,
    address: Address = None,
    token_file: TokenFile = None,
) -> int:
    """Ask a run to end in order, from any machine that reaches its output folder.

    The run does what it does at SIGTERM: running work has stop_grace_s to end, and what is finished
    is stored. Exit status: 0 it has ended, or had before; 1 no run is there, or it does not answer.
    """
    if is_job_id(target):
        return _stop_job(target, address, token_file, None if no_wait else timeout, no_wait)
    check_folder(target, address, token_file)
    from jobs.status.stop import stop_run

    stop_run(_output(target), say, wait=not no_wait, timeout_s=timeout)
    return EXIT_DONE


def _output(location: str) -> Folder:
    from jobs.jobfile.paths import absolute
    from pipeline.storage import Folder

    return Folder(absolute(location))


def _job_status(job_id: str, address: str | None, token_file: str | None, as_json: bool) -> int:
    from cluster.submission.submitted import job_status

    job = job_status(job_id, address, token_file)
    if as_json:
        say_json(asdict(job), indent=1)
    else:
        say(_how(job))
        if job.output:
            say(f"`retake status {shlex.quote(job.output)}` shows how far it is")
    return EXIT_DONE if job.runs else _exit_of(job.exit_code)


def _how(job: SubmittedJob) -> str:
    """In a line; with what Ray says of a job that waits, and of one that it could not run."""
    if job.exit_code is not None:
        return f"{job.id}: {job.status}, exit status {job.exit_code}"
    why = "" if job.status == "RUNNING" else " ".join(job.message.split())
    return f"{job.id}: {job.status}{f': {why}' if why else ''}"


def _exit_of(code: int | None) -> int:
    """Of a job that has ended: that of its run, as for an output folder."""
    return code if code in (EXIT_DONE, EXIT_SOME_FAILED) else EXIT_CANNOT_RUN


def _stop_job(
    job_id: str, address: str | None, token_file: str | None, timeout: float | None, no_wait: bool
) -> int:
    from cluster.submission.submitted import await_end, stop_job

    before = stop_job(job_id, address, token_file)
    if not before.runs:
        say(f"{job_id} has ended already: {before.status}")
        return EXIT_DONE
    say(f"asked {job_id} to stop")
    if not no_wait:
        after = await_end(
            job_id,
            address,
            token_file,
            timeout_s=timeout,
            waiting=lambda job: say(f"{job_id} is {job.status}"),
        )
        say(f"{job_id} has ended: {after.status}")
    return EXIT_DONE
