"""A job run: refuse what can be refused, do what is pending, show how it went."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import yaml
from rich.console import Console

from cluster.garbage import tidy
from cluster.layout.placement import given_address
from cluster.layout.work import Amount
from cluster.results.ledger import Keys, read_done
from cluster.scan import count_pending
from cluster.selection.survey import Survey
from cluster.stages.check import CheckRows
from jobs.display import Progress, show_end, show_plan
from jobs.errors import counted
from jobs.prepare import Prepared, prepare
from jobs.spec import RESOLVED, JobSpec
from jobs.trial import Part
from pipeline import __version__
from pipeline.storage import Folder

PACKAGES = ("torch", "diffusers", "transformers", "ray", "xfuser", "pyarrow", "av")
COUNT_UP_TO = 100_000


def run_job(spec: JobSpec, part: Part | None = None) -> int:
    """Do what is pending of a job, and show it.

    Args:
        part: what of the manifest to take; all of it by default.

    Returns:
        How many edits failed.

    Raises:
        JobError: the job cannot run as it is written.
        CannotRun: the cluster is too small, or its ranks cannot work at all.
    """
    started = time.monotonic()
    console = Console(emoji=False)
    with Progress(console) as progress:
        progress.phase("checking the job, its manifest and its checkpoint")
        prepared = prepare(spec)
        show_plan(prepared, console)
        progress.phase("comparing the manifest with the results")
        todo = pending(prepared, part)
        if part:
            console.print(todo.in_words(), soft_wrap=True, highlight=False, markup=False)
        counts = None
        if todo.edits:
            progress.edits = todo.edits
            address = given_address()
            ray = f"connecting to Ray at {address}" if address else "starting Ray"
            progress.phase(f"{ray}, {counted(todo.edits, 'edit')} to make")
            from cluster import dataflow

            Folder(prepared.job.editing.output).write(RESOLVED, resolved(prepared).encode())
            counts = dataflow.run(
                prepared.job,
                todo.done,
                prepared.scan.repeated,
                progress.show,
                part.selection if part else None,
                todo.part.rows if todo.part else None,
                todo.amount,
            )
        progress.phase("tidying up")
        tidy(prepared.job, whole=part is None)
    show_end(counts, prepared, todo, time.monotonic() - started, console)
    return counts.failed if counts else 0


@dataclass(frozen=True)
class Pending:
    """What is still to be done of a job.

    Args:
        done: what stands in the results already.
        edits: results that a run will give; exact for manifests of up to `COUNT_UP_TO` edits.
        before: edits that were done before.
        amount: what the groups are going to do, in a large manifest at most.
        part: what was found of the part of the manifest that the run takes, if it takes a part.
    """

    done: Keys
    edits: int
    before: int
    amount: Amount
    part: Survey | None = None

    def in_words(self) -> str:
        """What a run of a part takes."""
        videos = self.part.videos if self.part else 0
        refused = self.part.refused.total() if self.part else 0
        also = f", {refused} refused" if refused else ""
        return (
            f"this run takes {counted(videos, 'video')} with "
            f"{counted(self.edits - refused, 'pending edit')}{also}; done before: {self.before}"
        )


def pending(prepared: Prepared, part: Part | None = None) -> Pending:
    """Compare the manifest, or a part of it, with the results.

    Raises:
        JobError: the part names what the manifest does not have.
    """
    done = read_done(Folder(prepared.job.editing.output))
    if part:
        found = part.survey(prepared, done)
        return Pending(done, found.edits, found.done, Amount(found.videos, found.pending), found)
    edits = prepared.scan.edits
    # Counting reads the whole manifest; it is worth that where the answer may be "nothing".
    if edits <= COUNT_UP_TO or len(done) >= edits:
        check = CheckRows(prepared.job, done, prepared.scan.repeated)
        left, amount = count_pending(prepared.job.files, check)
    else:
        left = max(0, edits - len(done))
        amount = Amount(min(left, prepared.scan.videos), left)
    return Pending(done, left, max(0, edits - left), amount)


def resolved(prepared: Prepared) -> str:
    """The job with every default filled in, and what it ran with, as YAML."""
    job = prepared.job
    values = prepared.spec.plain()
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
