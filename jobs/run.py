"""A job run: refuse what can be refused, do what is pending, show how it went."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import yaml

from cluster.garbage import tidy
from cluster.job import CannotRun, Job, WorkLost
from cluster.layout.placement import given_address
from cluster.output.attempts import forgive, settle
from cluster.output.lease import Lease, LeaseLost, held
from cluster.output.lost import before_a_run
from cluster.pending.missing import Places
from cluster.pending.rows import PendingRows
from cluster.progress import Counts
from cluster.results.damaged import setter_aside
from jobs.display import Progress, console_of_a_run, show_end, show_plan
from jobs.errors import counted
from jobs.jobfile.paths import LOCATIONS
from jobs.prepare import Prepared, prepare
from jobs.spec import RESOLVED, JobSpec
from jobs.stopping import Region, drains
from jobs.trial import Part, pending_rows
from pipeline import __version__
from pipeline.errors import Unreadable
from pipeline.redaction import redacted
from pipeline.storage import Folder, explain

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
    console = console_of_a_run()
    with Progress(console) as progress:
        progress.phase("checking the job, its manifest and its checkpoint")
        prepared = prepare(spec)
        show_plan(prepared, console)
        job = prepared.job
        output = Folder(job.editing.output)
        with held(output, job.run, wait=wait, on_wait=progress.phase) as lease:
            prepared, job = _named(prepared, lease)
            todo = _compare(prepared, part, lease, progress, retry_quarantined)
            counts = None
            if todo.edits:
                dataflow = _begin(prepared, todo, progress)
                lease.check()
                output.write(RESOLVED, resolved(prepared).encode())
                with drains(job.cluster.stop_grace_s, lease.stopping) as region:
                    show = partial(_show, progress, region)
                    with _forgiven(output, job.run, region):
                        counts = dataflow.run(job, todo, show, stop=region.stop, lease=lease)
            _tidy(job, lease, progress, whole=part is None)
    show_end(counts, prepared, todo, part is not None, time.monotonic() - started, console)
    return counts.failed if counts else 0


def _named(prepared: Prepared, lease: Lease) -> tuple[Prepared, Job]:
    """A job with the name of its run: other runs may have ended since it was prepared."""
    job = replace(prepared.job, run=lease.run)
    return replace(prepared, job=job), job


def _compare(
    prepared: Prepared, part: Part | None, lease: Lease, progress: Progress, again: bool
) -> PendingRows:
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
    rows = pending_rows(prepared, part, setter_aside(progress.note), retry_quarantined=again)
    # Where Ray starts on this machine there is no other one that could have a local file.
    todo = replace(rows, places=Places.OBJECTS if given_address() else Places.ALL)
    if part:
        progress.say(_in_words(todo))
    return todo


def _begin(prepared: Prepared, todo: PendingRows, progress: Progress) -> ModuleType:
    """Say what begins; what runs it brings Ray, whose import takes seconds."""
    progress.edits = todo.edits
    address = given_address()
    ray = f"connecting to Ray at {address}" if address else "starting Ray"
    progress.phase(f"{ray}, {counted(todo.edits, 'edit')} to make")
    from cluster import dataflow

    return dataflow


@contextmanager
def _forgiven(output: Folder, run: str, region: Region) -> Iterator[None]:
    """Where the driver ends groups at work, by a signal or an error, no row is blamed for it.

    The records stay where the work itself may be the reason, and where another run has the folder,
    which has judged them.
    """
    try:
        yield
    except (LeaseLost, WorkLost):
        raise
    except (Exception, KeyboardInterrupt):
        forgive(output, run)
        raise
    if region.stop.is_set():
        forgive(output, run)


def _tidy(job: Job, lease: Lease, progress: Progress, *, whole: bool) -> None:
    """Tidy the output folder up, if storage lets it: all results are stored, whatever happens here.

    Raises:
        LeaseLost: another run has the folder.
    """
    progress.phase("tidying up")
    output = job.editing.output
    try:
        tidy(job, whole=whole, note=progress.note, before=partial(lease.check, sure=True))
    except LeaseLost:
        raise
    except Exception as error:  # each storage has its own kinds of failure
        known = isinstance(error, Unreadable | CannotRun)
        why = str(error) if known else explain(error, output, "written").text
        progress.note(
            f"output {output}: could not be tidied up: {why}. All results are stored; the next run "
            "tidies up"
        )


def _show(progress: Progress, region: Region, counts: Counts) -> None:
    region.begin()
    progress.show(counts)


def _in_words(todo: PendingRows) -> str:
    """What a run of a part takes."""
    found = todo.found
    refused = found.refused.total()
    also = f", {refused} refused" if refused else ""
    return (
        f"this run takes {counted(found.videos, 'video')} with "
        f"{counted(found.pending, 'pending edit')}{also}; done before: {found.done}"
    )


def resolved(prepared: Prepared) -> str:
    """The job with every default filled in, and what it ran with, as YAML."""
    job = prepared.job
    values = prepared.spec.plain()
    for name in (*LOCATIONS, "name"):  # a prompt that is altered would make other edits
        values[name] = redacted(values[name])
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
