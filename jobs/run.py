"""A job run: refuse what can be refused, do what is pending, show how it went."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

import yaml
from pydantic import TypeAdapter
from rich.console import Console

from cluster.garbage import tidy
from cluster.results.ledger import Keys, read_done
from cluster.scan import count_pending
from cluster.stages.check import CheckRows
from jobs.display import Progress, show_end, show_plan
from jobs.prepare import Prepared, prepare
from jobs.spec import JobSpec
from pipeline import __version__
from pipeline.storage import Folder

PACKAGES = ("torch", "diffusers", "transformers", "ray", "xfuser", "pyarrow", "av")
COUNT_UP_TO = 100_000


def run_job(spec: JobSpec) -> int:
    """Do what is pending of a job, and show it.

    Returns:
        How many edits failed.

    Raises:
        JobError: the job cannot run as it is written.
        CannotRun: the cluster is too small, or its ranks cannot work at all.
    """
    started = time.monotonic()
    console = Console()
    prepared = prepare(spec)
    show_plan(prepared, console)
    todo = pending(prepared)
    counts = None
    if todo.edits:
        from cluster import dataflow

        Folder(prepared.job.editing.output).write("job.yaml", resolved(prepared).encode())
        with Progress(console, todo.edits) as progress:
            counts = dataflow.run(prepared.job, todo.done, prepared.scan.repeated, progress.show)
    else:
        tidy(prepared.job)
    show_end(counts, prepared, todo, time.monotonic() - started, console)
    return counts.failed if counts else 0


@dataclass(frozen=True)
class Pending:
    """What is still to be done of a job.

    Args:
        done: what stands in the results already.
        edits: results that a run will give; exact for manifests of up to `COUNT_UP_TO` edits.
    """

    done: Keys
    edits: int


def pending(prepared: Prepared) -> Pending:
    """Compare the manifest with the results."""
    done = read_done(Folder(prepared.job.editing.output))
    edits = prepared.scan.edits
    # Counting reads the whole manifest; it is worth that where the answer may be "nothing".
    if edits <= COUNT_UP_TO or len(done) >= edits:
        check = CheckRows(prepared.job, done, prepared.scan.repeated)
        return Pending(done, count_pending(prepared.job.files, check))
    return Pending(done, max(0, edits - len(done)))


def resolved(prepared: Prepared) -> str:
    """The job with every default filled in, and what it ran with, as YAML."""
    job = prepared.job
    spec = replace(prepared.spec, manifest=job.manifest, output=job.editing.output)
    values = TypeAdapter(JobSpec).dump_python(spec, mode="json")
    first = {name: values.pop(name) for name in ("manifest", "output")}
    about = {
        "versions": {"retake": __version__, "python": platform.python_version()}
        | {name: _version(name) for name in PACKAGES},
        "fingerprints": {
            "job": job.fingerprint(),
            "checkpoint": prepared.checkpoint.fingerprint,
        },
        "family": prepared.checkpoint.family,
        "run": job.run,
    }
    return yaml.safe_dump({**first, **values, "about": about}, sort_keys=False, allow_unicode=True)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
