"""A job run: refuse what can be refused, do what is pending, show how it went."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import yaml
from rich.console import Console

from cluster.garbage import tidy
from cluster.layout.placement import given_address
from cluster.output.attempts import forgive, settle
from cluster.output.lease import Lease, held
from cluster.output.lost import before_a_run
from cluster.pending.missing import Places
from cluster.pending.rows import PendingRows
from cluster.progress import Counts
from cluster.results.damaged import Damaged, setter_aside, warn
from jobs.display import Progress, show_end, show_plan
from jobs.errors import counted
from jobs.prepare import Prepared, prepare
from jobs.spec import RESOLVED, JobSpec
from jobs.stopping import Region, drains
from jobs.trial import Part, pending_rows
from pipeline import __version__
from pipeline.redaction import redacted
from pipeline.storage import Folder

PACKAGES = ("torch", "diffusers", "transformers", "ray", "xfuser", "pyarrow", "av")


def run_job(
    spec: JobSpec,
    part: Part | None = None,
    *,
    wait: bool = False,
    retry_quarantined: bool = False,
) -> int:
    """Do what is pending of a job, and show it.

    Args:
        part: what of the manifest to take; all of it by default.
        wait: for another run that writes to the output folder; else it is an error.
        retry_quarantined: give edits another chance that an earlier run has quarantined.

    Returns:
        How many edits failed.

    Raises:
        JobError: the job cannot run as it is written.
        CannotRun: the cluster is too small, its ranks cannot work at all, or another run writes to
            the output folder.
        Stopped: a signal came, and the run has ended in order.
    """
    started = time.monotonic()
    console = Console(emoji=False)
    with Progress(console) as progress:
        progress.phase("checking the job, its manifest and its checkpoint")
        prepared = prepare(spec)
        show_plan(prepared, console)
        job = prepared.job
        output = Folder(job.editing.output)
        with held(output, job.run, wait=wait, on_wait=progress.phase) as lease:
            todo = _compare(prepared, part, lease, progress, retry_quarantined)
            counts = None
            if todo.edits:
                dataflow = _begin(prepared, todo, progress)
                lease.check()
                output.write(RESOLVED, resolved(prepared).encode())
                with drains(job.cluster.stop_grace_s, lease.stopping) as region:
                    show = partial(_show, progress, region)
                    counts = dataflow.run(job, todo.rows, show, stop=region.stop, lease=lease)
                    if region.stop.is_set():
                        forgive(output, job.run)
            progress.phase("tidying up")
            lease.check()
            tidy(job, whole=part is None, note=progress.note)
    show_end(counts, prepared, todo, time.monotonic() - started, console)
    return counts.failed if counts else 0


def _compare(
    prepared: Prepared, part: Part | None, lease: Lease, progress: Progress, again: bool
) -> Pending:
    """What is pending, once what earlier runs left is settled.

    Args:
        again: whether quarantined edits get another chance.
    """
    for text in lease.notes:
        progress.note(text)
    progress.phase("comparing the manifest with the results")
    output, run = lease.output, prepared.job.run
    before_a_run(output, run, progress.note)
    settle(output, run, stopped=lease.runs_stopped, forget=again)
    todo = pending(prepared, part, setter_aside(progress.note), retry_quarantined=again)
    if part:
        progress.say(todo.in_words())
    return todo


def _begin(prepared: Prepared, todo: Pending, progress: Progress) -> ModuleType:
    """Say what begins; what runs it brings Ray, whose import takes seconds."""
    progress.edits = todo.edits
    address = given_address()
    ray = f"connecting to Ray at {address}" if address else "starting Ray"
    progress.phase(f"{ray}, {counted(todo.edits, 'edit')} to make")
    from cluster import dataflow

    return dataflow


def _show(progress: Progress, region: Region, counts: Counts) -> None:
    region.begin()
    progress.show(counts)


@dataclass(frozen=True)
class Pending:
    """What is still to be done of a job.

    Args:
        rows: of the manifest, those with something pending.
        part: whether the run takes a part of the manifest.
    """

    rows: PendingRows
    part: bool = False

    @property
    def edits(self) -> int:
        """Results that a run will give."""
        return self.rows.edits

    @property
    def before(self) -> int:
        """Edits that were done before."""
        return self.rows.before

    @property
    def quarantined(self) -> int:
        """Edits that are left out, since an earlier run has quarantined them."""
        return self.rows.quarantined

    def in_words(self) -> str:
        """What a run of a part takes."""
        found = self.rows.found
        refused = found.refused.total()
        also = f", {refused} refused" if refused else ""
        return (
            f"this run takes {counted(found.videos, 'video')} with "
            f"{counted(found.pending, 'pending edit')}{also}; done before: {found.done}"
        )


def pending(
    prepared: Prepared,
    part: Part | None = None,
    on_damaged: Callable[[Damaged], None] = warn,
    *,
    retry_quarantined: bool = False,
) -> Pending:
    """Compare the manifest, or a part of it, with the results.

    Args:
        on_damaged: called with each damaged file of the results, which is left out.
        retry_quarantined: edits that an earlier run has quarantined are pending, too.

    Raises:
        JobError: the part names what the manifest does not have.
    """
    rows = pending_rows(prepared, part, on_damaged, retry_quarantined=retry_quarantined)
    # Where Ray starts on this machine there is no other one that could have a local file.
    rows = replace(rows, places=Places.OBJECTS if given_address() else Places.ALL)
    return Pending(rows, part is not None)


def resolved(prepared: Prepared) -> str:
    """The job with every default filled in, and what it ran with, as YAML."""
    job = prepared.job
    values = _without_secrets(prepared.spec.plain())
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


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_secrets(one) for name, one in value.items()}
    return redacted(value) if isinstance(value, str) else value


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
