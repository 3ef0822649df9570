"""A job run: refuse what can be refused, do what is pending, show how it went."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING

import yaml

from cluster.accept import measured_kinds
from cluster.garbage import tidy
from cluster.job import CannotRun, Job, WorkLost
from cluster.layout.placement import given_address
from cluster.output.attempts import forgive, settle
from cluster.output.lease import Lease, LeaseLost, held
from cluster.output.lost import before_a_run
from cluster.pending.missing import Places
from cluster.pending.rows import PendingRows
from cluster.pending.unscored import Unscored, find_unscored
from cluster.progress import Counts
from cluster.results.damaged import setter_aside
from jobs.display import Progress, console_of_a_run, show_end, show_plan
from jobs.errors import counted
from jobs.jobfile.paths import LOCATIONS, SCORE_MODELS
from jobs.jobfile.scores import wanted_scores
from jobs.plan.beside import PlanBeside
from jobs.prepare import Prepared, prepare
from jobs.spec import RESOLVED, JobSpec
from jobs.status.heartbeat import Heartbeat
from jobs.status.record import Ending
from jobs.status.request import StopRequest
from jobs.status.state import RunState
from jobs.stopping import Region, ask_to_stop, drains, status_of_a_stop
from jobs.summary import lines_of, write_summary
from jobs.trial import Part, pending_rows
from pipeline import __version__
from pipeline.errors import Unreadable
from pipeline.redaction import redacted
from pipeline.storage import Folder, explain

if TYPE_CHECKING:
    from cluster.driver.rounds import Rounds

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
        How many edits failed, or are left without scores that the job asks for.

    Raises:
        JobError: the job cannot run as it is written.
        CannotRun: the cluster is too small, its ranks cannot work at all, or another run writes to
            the output folder.
        Stopped: a signal came, and the run has ended in order.
    """
    console = console_of_a_run()
    output, state = Folder(spec.output), RunState()
    ear = _Ear()
    heart = Heartbeat(output, state, ear.heard)
    with Progress(console, state) as progress, heart.beats(), _ending(heart):
        ear.progress = progress
        progress.phase("checking the job, its manifest and its checkpoint")
        prepared = prepare(spec)
        show_plan(prepared, console)
        job = prepared.job
        waits = partial(_waits, progress)
        with (
            held(output, job.run, wait=wait, on_wait=waits) as lease,
            heart.of(lease),
            _ending(heart),
            PlanBeside() as beside,
        ):
            began = time.monotonic()
            prepared, job = _named(prepared, lease)
            todo = _compare(prepared, part, lease, progress, retry_quarantined)
            unscored = _unscored(prepared, part, progress)
            counts, rounds = None, _rounds(job, todo, part)
            if todo.edits or unscored or rounds:
                if todo.edits:
                    beside.begin(prepared, todo)
                dataflow = _begin(prepared, todo, len(unscored), progress, lease)
                with _draining(job, lease, ear) as region:
                    show = partial(_show, progress, region)
                    how = {"stop": region.stop, "lease": lease}
                    how |= {"unscored": unscored, "rounds": rounds}
                    counts = dataflow.run(job, todo, show, **how)
            _tidy(job, lease, progress, whole=part is None)
            _sum_up(job, counts, began, progress, beside)
            heart.ends(*_how(counts, ear.region))
    show_end(counts, prepared, todo, part is not None, state.status().seconds, console)
    return counts.failed + _missing(counts) if counts else 0


@dataclass
class _Ear:
    """Hears a request to stop the run, and does what SIGTERM does."""

    progress: Progress | None = None
    region: Region | None = None

    def heard(self, request: StopRequest) -> None:
        if self.progress:
            self.progress.note(f"asked to stop by {request.by} (`retake stop`)")
        ask_to_stop(self.region)


@contextmanager
def _draining(job: Job, lease: Lease, ear: _Ear) -> Iterator[Region]:
    """Work that ends in order where it is asked to."""
    with drains(job.cluster.stop_grace_s, lease.stopping) as region:
        ear.region = region
        with _forgiven(lease.output, job.run, region):
            yield region


@contextmanager
def _ending(heart: Heartbeat) -> Iterator[None]:
    """What ends a run before its end is in its last heartbeat."""
    try:
        yield
    except KeyboardInterrupt:
        heart.ends("stopped", status_of_a_stop())
        raise
    except Exception as error:
        heart.ends("failed", 1, f"{error}" or type(error).__name__)
        raise


def _how(counts: Counts | None, region: Region | None) -> tuple[Ending, int]:
    """How a run ended that came to its end, and its exit status."""
    if region and region.stop.is_set():  # without a command that listens to signals
        return "stopped", status_of_a_stop()
    if counts and counts.failed:
        return "failed edits", 3
    return ("scores missing", 3) if counts and _missing(counts) else ("ok", 0)


def _missing(counts: Counts) -> int:
    """Edits that are left without scores."""
    return counts.scores.missing if counts.scores else 0


def _waits(progress: Progress, text: str) -> None:
    progress.state.put(state="waiting for the lease")
    progress.phase(text)


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
    progress.state.put(state="checking", stop_grace_s=prepared.job.cluster.stop_grace_s)
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


def _rounds(job: Job, todo: PendingRows, part: Part | None) -> Rounds | None:
    """The further rounds of edits that are rejected; None where the job has none. Of a part of the
    manifest, those of earlier runs are as of `_unscored`."""
    if job.editing.reconstruction.until_accepted == 1:
        return None
    from cluster.driver.rounds import Rounds, find_rejected

    if not _has_earlier(part):
        return Rounds(job, todo)
    return Rounds(job, todo, find_rejected(job, part.selection if part else None))


def _has_earlier(part: Part | None) -> bool:
    """Whether a run takes edits that earlier ones have made."""
    return part is None or (part.limit is None and part.failed is None)


def _unscored(prepared: Prepared, part: Part | None, progress: Progress) -> Unscored:
    """The edits of earlier runs that lack a score. Of a part of the manifest, those that are named:
    one that is of so many videos, or of failed edits, has none but those that it makes."""
    job = prepared.job
    if not (_has_earlier(part) and measured_kinds(job.score)):
        return Unscored(Folder(job.editing.output), {})
    progress.phase("looking for edits without scores")
    wanted = wanted_scores(job.score, progress.note)
    return find_unscored(job, wanted, selection=part.selection if part else None)


def _begin(
    prepared: Prepared, todo: PendingRows, unscored: int, progress: Progress, lease: Lease
) -> ModuleType:
    """Say what begins; what runs it brings Ray, whose import takes seconds."""
    found = todo.found
    progress.state.put(
        state="starting",
        edits=todo.edits,
        videos=found.videos,
        done_before=todo.before,
        quarantined=todo.quarantined,
    )
    address = given_address()
    ray = f"connecting to Ray at {address}" if address else "starting Ray"
    to_do = [f"{counted(todo.edits, 'edit')} to make"] * bool(todo.edits or not unscored)
    to_do += [f"{counted(unscored, 'stored edit')} to score"] * bool(unscored)
    progress.phase(f"{ray}, {', '.join(to_do)}")
    lease.check()
    lease.output.write(RESOLVED, resolved(prepared).encode())
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


def _sum_up(
    job: Job, counts: Counts | None, began: float, progress: Progress, beside: PlanBeside
) -> None:
    """Write the summary of a run, and show it.

    Args:
        began: when the run had the folder: groups were not idle while another one held it.
        beside: makes its plan.
    """
    seconds = time.monotonic() - began
    plan = beside.plan(counts.gpus) if counts else None
    for line in lines_of(write_summary(job, counts, seconds, progress.note, plan)):
        progress.say(line)


def _show(progress: Progress, region: Region, counts: Counts) -> None:
    if not counts.starting:
        region.begin()
    progress.show(counts)
    if region.stop.is_set():
        progress.stopping(counts.doing or f"running work has {region.grace_s:g} s to end")


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
    values["score"] |= {name: redacted(values["score"][name]) for name in SCORE_MODELS}
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
