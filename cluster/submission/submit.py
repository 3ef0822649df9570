"""Sends a job to a cluster: the code, what the job needs of this machine, and the command."""

from __future__ import annotations

import base64
import json
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster.job import CannotRun
from cluster.submission.entry import HOOK, VALUES
from cluster.submission.environment import runtime_environment
from cluster.submission.head import Head
from cluster.submission.package import code_package, zipped
from cluster.submission.submitted import NAME, OUTPUT
from pipeline import __version__
from pipeline.redaction import redacted

JOB = "job.yaml"
"""The job's name in the folder that it runs in on the head."""
VARIABLE = "RETAKE_SUBMITTED_JOB"
"""Holds the job where an image is used: Ray brings no folder into one."""
MOST_BYTES = 400 << 20
"""Ray takes packages of up to 500 MiB."""


@dataclass(frozen=True)
class Submission:
    """All that is sent.

    Args:
        name: of the job.
        job: the job file, as YAML, whose locations mean the same on the cluster.
        files: what travels beside the job file, by relative name.
        options: of `retake run`.
        output: the output folder, for who asks about the job.
        embedded: whether the job needs the embedded checkpoint.
        stop_grace_s: as the job has it.
        values: of environment variables that travel.
        bring_packages, image: as `runtime_environment` takes them.
    """

    name: str
    job: str
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    options: Sequence[str] = ()
    output: str = ""
    embedded: bool = False
    stop_grace_s: float = 20.0
    values: Mapping[str, str] = field(default_factory=dict, repr=False)
    bring_packages: bool = False
    image: str | None = None


def submit(head: Head, submission: Submission, job_id: str) -> None:
    """Send a job. It waits on the cluster until it can start.

    Raises:
        CannotRun: the head refuses it, or what travels is too large.
    """
    from cluster.submission.client import asking

    runtime_env = runtime_environment(
        submission.stop_grace_s, bring_packages=submission.bring_packages, image=submission.image
    )
    with asking(head) as client, tempfile.TemporaryDirectory(prefix="retake-submit-") as folder:
        if submission.image:
            runtime_env["env_vars"] |= {VARIABLE: _in_a_variable(submission), **submission.values}
        else:
            packages = {"code": code_package(embedded=submission.embedded), "job": _job(submission)}
            uris = {}
            for name, data in packages.items():
                path = os.path.join(folder, f"{name}.zip")
                with open(path, "wb") as file:
                    file.write(data)
                uris[name] = client.upload(path)
            runtime_env |= {"py_modules": [uris["code"]], "working_dir": uris["job"]}
            if submission.values:
                runtime_env["worker_process_setup_hook"] = HOOK
        client.submit_job(
            entrypoint=entry_command(submission),
            submission_id=job_id,
            runtime_env=runtime_env,
            metadata={
                NAME: submission.name,
                OUTPUT: redacted(submission.output),
                "retake_version": __version__,
            },
        )


def entry_command(submission: Submission) -> str:
    """The command line that Ray runs on the head, in a shell.

    `exec` has the run take the shell's place, so that Ray's signal reaches it.
    """
    python = "$(command -v python || echo python3)"
    run = f"{python} -m cluster.submission.entry run --wait"
    options = " ".join(map(shlex.quote, submission.options))
    if not submission.image:
        return f"exec {run} {options} {JOB}".replace("  ", " ")
    # The job file stands in a variable, and a pipe has no name: it is written where the run is.
    write = f'folder=$(mktemp -d) && printf %s "${VARIABLE}" | base64 -d > "$folder/{JOB}"'
    return f'{write} && exec {run} {options} "$folder/{JOB}"'.replace("  ", " ")


def _job(submission: Submission) -> bytes:
    files = {JOB: submission.job.encode(), **submission.files}
    if submission.values:
        files[VALUES] = json.dumps(dict(submission.values), sort_keys=True).encode()
    if (size := sum(map(len, files.values()))) > MOST_BYTES:
        raise CannotRun(
            f"what travels with the job has {size / 1e6:.0f} MB; Ray takes {MOST_BYTES / 1e6:.0f} "
            "at most. Put the manifest into object storage, and name it there in the job"
        )
    return zipped(files, 0o600)  # locations and variables may hold secrets


def _in_a_variable(submission: Submission) -> str:
    if submission.files:
        raise CannotRun(
            f"--image: {next(iter(submission.files))} is a file of this machine, and Ray brings no "
            "files into an image. Put it into object storage, or leave --image out"
        )
    if redacted(submission.job) != submission.job:
        raise CannotRun(
            "--image: a location of the job holds a secret, and Ray would show it to all who list "
            "jobs. Give the nodes the storage's credentials in their environment"
        )
    return base64.b64encode(submission.job.encode()).decode()
