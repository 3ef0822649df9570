"""`retake gc`: deletes the stored trajectories of an output folder that no result needs, and the
logs of old runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from cluster.events.stored import FOLDER as LOGS
from cluster.events.stored import KEEP_RUNS, old_segments
from cluster.garbage import KEEP, Unneeded, delete, find_garbage
from cluster.job import Job
from cluster.output.lease import held
from cluster.pending.done import find_answered
from cluster.pending.rows import PendingRows
from cluster.pending.scan import scan_manifest
from cluster.results.parts import part_names
from cluster.selection.survey import pending_videos
from jobs.errors import JobError, WrongOption, counted
from jobs.manifest.checks import check_manifest
from jobs.spec import ABOUT, JobSpec, absolute, parse_job, read_resolved
from pipeline.redaction import say
from pipeline.storage import Folder


def clean(
    location: str,
    keep: str,
    *,
    dry_run: bool,
    yes: bool,
    confirm: Callable[[str], bool] | None,
    wait: bool = False,
) -> None:
    """Delete what no result needs, and old logs; ask before that deletes what results name.

    Args:
        location: the output folder of a job, a path or URI.
        keep: as `trajectory.keep`.
        dry_run: list it, and delete nothing.
        yes: do not ask.
        confirm: asks the user; None where there is nobody to ask.
        wait: for a run that writes to the folder; else it is an error.

    Raises:
        WrongOption: an unknown `keep`.
        CannotRun: a run writes to the folder.
        JobError: a folder that is no output, or a question that nobody answers.
    """
    if keep not in KEEP:
        raise WrongOption(f"--keep {keep!r}: expected one of {', '.join(KEEP)}")
    output = Folder(absolute(location))
    job = _output_of(output)
    if dry_run:
        _list(_find(output, keep, job))
        _delete_logs(output, dry_run=True)
        return
    with held(output, "", wait=wait, on_wait=say, command="retake gc") as lease:
        found = _find(output, keep, job)
        named = [one for one in found if one.named]
        if named and not yes and not _agreed(named, confirm):
            found = [one for one in found if not one.named]
        delete(output, found, partial(lease.check, sure=True))
        say(f"{_count(found)} cleaned up, {_megabytes(found)} deleted")
        _delete_logs(output, dry_run=False)


def _delete_logs(output: Folder, *, dry_run: bool) -> None:
    """Delete the logs of the runs before the last ones."""
    old = old_segments(output)
    size = sum(size for files in old.values() for _, size in files)
    if not old:
        return
    for run in () if dry_run else old:
        output.remove_folder(f"{LOGS}/{run}")
    done = "would be deleted" if dry_run else "deleted"
    runs = counted(len(old), "run")
    say(f"logs of {runs} before the last {KEEP_RUNS}, {size / 1e6:.1f} MB {done}")


def _find(output: Folder, keep: str, job: dict[str, Any]) -> list[Unneeded]:
    pending = frozenset[str]() if keep == "always" else _pending(output, job)
    return find_garbage(output, keep, pending)


def _agreed(named: Sequence[Unneeded], confirm: Callable[[str], bool] | None) -> bool:
    question = (
        f"{_count(named)}, {_megabytes(named)}: results name them and all of these edits are "
        "done; a new prompt would invert the videos again. Delete them?"
    )
    if confirm is None:
        raise JobError(f"{question} There is nobody to ask: say --yes, or see --dry-run")
    return confirm(question)


def _output_of(output: Folder) -> dict[str, Any]:
    """The resolved job of an output folder; empty where there is none but results are.

    Raises:
        JobError: it has neither, so it is no output of a job.
    """
    job = read_resolved(output)
    if isinstance(job.get(ABOUT), dict):
        return job
    if part_names(output):
        return {}
    raise JobError(
        f"{output.uri}: is no output of a job: it has neither a job.yaml that a run wrote nor "
        "results/*.parquet; give the folder that the job file calls `output`"
    )


def _pending(output: Folder, job: dict[str, Any]) -> frozenset[str]:
    """The ids of the videos with edits that are pending, as the manifest of the last run says."""
    try:
        known = {field.name for field in fields(JobSpec)}
        spec = parse_job({k: v for k, v in job.items() if k in known}, source=f"{output.uri}")
        found = check_manifest(spec.manifest, leave_out=output.uri)
        about = job[ABOUT]
        whole = Job(
            manifest=spec.manifest,
            files=found.files,
            base=found.base,
            editing=spec.editing(),
            cluster=spec.cluster,
            checkpoint_fingerprint=about["fingerprints"]["checkpoint"],
            run="",
        )
        scan = scan_manifest(found.files)
        answered = find_answered(whole, scan, retry_quarantined=True)
        return pending_videos(PendingRows(whole, scan, answered))
    except Exception as error:  # the manifest may be gone, which is no reason to keep everything
        say(
            f"warning: which edits are pending is not known, since the job's manifest cannot be "
            f"read: {error}. Videos with pending edits may have to be inverted again",
            problem=True,
        )
        return frozenset()


def _list(found: Sequence[Unneeded]) -> None:
    for one in found:
        if one.named:
            why = "its edits are done"
        else:
            why = "no result names it" if one.whole else f"{len(one.files)} files that no index has"
        say(f"trajectories/{one.key}  {one.size / 1e6:.1f} MB  {why}")
    say(f"{_count(found)}, {_megabytes(found)} would be deleted")


def _count(found: Sequence[Unneeded]) -> str:
    return counted(len(found), "trajectory", "trajectories")


def _megabytes(found: Sequence[Unneeded]) -> str:
    return f"{sum(one.size for one in found) / 1e6:.1f} MB"
