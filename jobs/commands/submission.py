"""The command that sends a job to a cluster elsewhere."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

from jobs.commands.app import EXIT_CANNOT_RUN, EXIT_DONE, app
from jobs.errors import WrongOption
from jobs.options import Changes, Codes, JobFile, Limit, Only, RetryFailed, RetryQuarantined
from jobs.stopping import Stopped
from jobs.submission.options import (
    Address,
    BringPackages,
    Image,
    NoWait,
    Shared,
    TokenFile,
    Variables,
)
from pipeline.redaction import say

if TYPE_CHECKING:
    from cluster.submission.head import Head
    from cluster.submission.submitted import SubmittedJob

BOTH = "--image and --bring-packages: Ray installs nothing into an image; give one of them"
MESSAGE_LENGTH = 600


@app.command()
def submit(
    job: JobFile,
    set_: Changes = None,
    address: Address = None,
    token_file: TokenFile = None,
    limit: Limit = None,
    only: Only = None,
    retry_failed: RetryFailed = False,
    code: Codes = None,
    retry_quarantined: RetryQuarantined = False,
    env: Variables = None,
    bring_packages: BringPackages = False,
    image: Image = None,
    shared: Shared = False,
    no_wait: NoWait = False,
) -> int:
    """Send a job to a Ray cluster, and follow its log until it ends. Retake itself travels along.

    Ctrl-C stops following; the job goes on. Exit status: that of `retake run` there; with
    --no-wait, 0 when the cluster has the job.
    """
    from cluster.submission.environment import variables
    from cluster.submission.head import reach
    from cluster.submission.ids import new_job_id
    from cluster.submission.submit import submit as send
    from jobs.failures import failed_of
    from jobs.spec import load_job
    from jobs.submission.travel import RunOptions, travelling

    if image and bring_packages:
        raise WrongOption(BOTH)
    failed_of(retry_failed, code or [], retry_quarantined)  # refuses wrong codes here, not there
    spec = load_job(job, set_ or [])
    values = variables(env or [])
    head = reach(address, token_file)
    options = RunOptions(limit, only or (), retry_quarantined, retry_failed, code or ())
    sees_files = shared or head.is_this_machine()
    submission = replace(
        travelling(spec, options, sees_files=sees_files),
        values=values,
        bring_packages=bring_packages,
        image=image,
    )
    if image and values:
        say("note: Ray keeps the values of --env in its logs on the nodes where --image is used")
    job_id = new_job_id(submission.name)
    say(f"id       {job_id}")
    say(f"cluster  {head.address}, Ray {head.ray}")
    say(f"output   {submission.output}")
    send(head, submission, job_id)
    if no_wait:
        say(f"the cluster has the job; {_how_to_go_on(head, job_id)}")
        return EXIT_DONE
    return _follow(head, job_id)


def _follow(head: Head, job_id: str) -> int:
    """Show the log of a job; returns the exit status of its run."""
    from cluster.submission.submitted import end_of, followed_log

    try:
        for line in followed_log(head, job_id):
            say(line)
        return _exit_status(end_of(head, job_id), head)
    except KeyboardInterrupt as signal:
        text = f"stopped following; the job goes on: {_how_to_go_on(head, job_id)}"
        raise Stopped(text) from signal


def _exit_status(job: SubmittedJob, head: Head) -> int:
    if job.runs:
        say(f"the log has ended, and Ray still calls the job {job.status}", problem=True)
        return EXIT_CANNOT_RUN
    if job.status == "STOPPED":
        say(f"{job.id} was stopped; submit the same job again to go on", problem=True)
    elif job.exit_code is None:
        why = " ".join(job.message.split())[:MESSAGE_LENGTH]
        say(f"error: {job.id}: Ray could not run it: {why}", problem=True)
    elif job.exit_code < 0:
        say(
            f"error: {job.id}: signal {-job.exit_code} ended the run on the head, as where its "
            "memory is full; submit the same job again to go on",
            problem=True,
        )
    known = job.exit_code is not None and job.exit_code >= 0
    return job.exit_code if known and job.exit_code is not None else EXIT_CANNOT_RUN


def _how_to_go_on(head: Head, job_id: str) -> str:
    token = f" --token-file {shlex.quote(file)}" if (file := head.token.file) else ""
    there = f"{job_id} --address {head.address}{token}"
    return f"`retake logs {there} --follow` shows what it prints, `retake stop {there}` ends it"
