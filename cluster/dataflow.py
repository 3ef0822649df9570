"""The graph of a job in Ray Data, and the driver that runs it.

    read -> check rows -> encode prompts -> invert -> fan out -> reconstruct -> results

Blocks hold one row from the check on, so that a finished video goes on at once and every actor of a
pool gets work. The driver takes finished rows as they come and stores them in batches.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from cluster import quiet  # noqa: F401 - before Ray, which reads it when it is imported

import ray  # isort: skip
import ray.data  # isort: skip

from cluster.connection import configure, connected, reason
from cluster.job import CannotRun, Job
from cluster.manifest import ManifestFiles
from cluster.placement import Placement, threads
from cluster.progress import Counts, Failure, Groups
from cluster.reports import DriverReport, Events
from cluster.results.ledger import Keys, ResultWriter
from cluster.selection.entries import Selection
from cluster.settings import GroupSettings
from cluster.stages.check import CheckRows
from cluster.stages.group import GroupStage
from cluster.stages.invert import EncodePrompts, FanOut, InvertVideos
from cluster.stages.reconstruct import ReconstructEdits
from pipeline.errors import Unreadable
from pipeline.storage import Folder

FLUSH_S = 5.0
"""Finished rows are stored at least this often: what a killed driver loses is made again."""
TICK_S = 0.2
ENCODER = GroupSettings()
SLOT = {"num_cpus": 0.1}
"""What a stage without ranks takes: next to nothing."""
ROWS_PER_PROMPT_BLOCK = 32
FAILURES_OF_A_CODE = 5
"""So many of each are passed on to be shown; all are in the results."""
LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.RuntimeEnvSetupError,
)
"""What Ray raises where a process or a node is gone; our own errors come as other kinds."""


Finished = queue.SimpleQueue[pa.Table | BaseException | None]
"""Blocks as they are finished; then None, or what stopped the graph."""


def run(
    job: Job,
    done: Keys,
    repeated: Mapping[str, str],
    on_progress: Callable[[Counts], None],
    selection: Selection | None = None,
    rows: pa.Table | None = None,
) -> Counts:
    """Run a job to its end and store its results.

    Args:
        done: keys of edits that are not pending.
        repeated: the digest of the first row of each `video_id` that several rows have.
        on_progress: called about five times a second, in this thread.
        selection: the edits to make; all that are pending by default.
        rows: the rows of the manifest to take; all of them by default.

    Raises:
        CannotRun: there is no Ray, the cluster is too small, or the ranks of a group cannot work
            at all.
        Unreadable: rows of the manifest cannot be read.
    """
    with connected(job) as placement:
        configure(job)
        events = Events()
        check = (job, done, repeated, selection)
        dataset = graph(job, check, placement, DriverReport(events.tally), rows)
        finished: Finished = queue.SimpleQueue()
        threading.Thread(target=_consume, args=(dataset, finished), daemon=True).start()
        try:
            return _store(job, finished, events, on_progress)
        except Exception as error:
            if isinstance(error, Unreadable):  # Ray's own text of it is a traceback
                raise Unreadable(str(getattr(error, "cause", error))) from error
            if broken := events.reason():
                raise CannotRun(f"a rank group could not start: {broken}") from error
            if isinstance(error, LOST):
                raise CannotRun(
                    f"Ray lost a process of the job: {reason(error)}. The results so far are "
                    "stored; look for what ended it (memory, a node that left, packages that a "
                    "node lacks), and run the same command again to go on"
                ) from error
            raise


def _store(
    job: Job, finished: Finished, events: Events, on_progress: Callable[[Counts], None]
) -> Counts:
    """Store finished rows as they come, and show how far the run is."""
    writer = ResultWriter(Folder(job.editing.output), job.run)
    counts = _with_events(Counts(), job, {})
    on_progress(counts)
    pending: list[pa.Table] = []
    flushed = time.monotonic()
    try:
        for table in _ticks(finished):
            if table is not None:
                pending.append(table)
                counts = _with_results(counts, table)
            counts = _with_events(counts, job, events.so_far())
            if pending and time.monotonic() - flushed > FLUSH_S:
                writer.write(pending)
                pending, flushed = [], time.monotonic()
            on_progress(counts)
    finally:
        if pending:
            writer.write(pending)
    counts = _with_events(counts, job, events.at_the_end())
    on_progress(counts)
    return counts


def graph(
    job: Job,
    check: tuple[Any, ...],
    placement: Placement,
    report: DriverReport,
    taken: pa.Table | None = None,
) -> ray.data.Dataset:
    """The lazy dataset of a job's result rows.

    Args:
        check: the arguments of `CheckRows`.
        taken: the rows of the manifest; it is read by default.
    """
    cluster, device = job.cluster, placement.device
    prompt_device = device if cluster.prompts.gpus else "cpu"
    rows = _read(job.files) if taken is None else ray.data.from_arrow(taken)
    rows = _stage(rows, CheckRows, check, batch_size=None)
    # A block of the manifest can hold 10^5 rows: encoding them all would hold the first video up.
    rows = rows.repartition(target_num_rows_per_block=ROWS_PER_PROMPT_BLOCK)
    rows = _stage(
        rows,
        EncodePrompts,
        (job, report, ENCODER, prompt_device, cluster.inversion_deadline_s, threads(job)),
        batch_size=None,
        groups=cluster.prompts.groups,
        resources={"num_gpus": 1} if prompt_device == "gpu" else {"num_cpus": 1},
    )
    rows = _one_row_a_block(rows)
    rows = _stage(
        rows,
        InvertVideos,
        (job, report, cluster.inversion, device, cluster.inversion_deadline_s, threads(job)),
        groups=cluster.inversion.groups,
        resources=placement.of(cluster.inversion),
    )
    rows = _stage(rows, FanOut, (job,))
    rows = _one_row_a_block(rows)
    return _stage(
        rows,
        ReconstructEdits,
        (
            job,
            report,
            cluster.reconstruction,
            device,
            cluster.reconstruction_deadline_s,
            threads(job),
        ),
        groups=cluster.reconstruction.groups,
        resources=placement.of(cluster.reconstruction),
    )


def _read(files: ManifestFiles) -> ray.data.Dataset:
    """The rows of a manifest, a task for each file.

    Ray's own reader would start up to 32 processes for the footers, which are known, and give
    each file's rows the types of that file.
    """
    places = ray.data.range(len(files), override_num_blocks=len(files))
    return places.map_batches(
        _rows_of_files,
        fn_args=(files,),
        batch_size=1,
        batch_format="pyarrow",
        **SLOT,
    )


def _rows_of_files(places: pa.Table, files: ManifestFiles) -> Iterator[pa.Table]:
    for place in places["id"].to_pylist():
        yield from files.tables_of(files.files[place])


def _stage(
    rows: ray.data.Dataset,
    stage: type,
    arguments: tuple[Any, ...],
    *,
    groups: int = 1,
    batch_size: int | None = 1,
    resources: Mapping[str, float] = SLOT,
) -> ray.data.Dataset:
    return rows.map_batches(
        stage,
        fn_constructor_args=arguments,
        batch_size=batch_size,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(size=groups),
        **resources,
    )


def _one_row_a_block(rows: ray.data.Dataset) -> ray.data.Dataset:
    return rows.repartition(target_num_rows_per_block=1)


def _consume(dataset: ray.data.Dataset, finished: Finished) -> None:
    try:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            finished.put(table)
        finished.put(None)
    except BaseException as error:
        finished.put(error)


def _ticks(finished: Finished) -> Iterator[pa.Table | None]:
    """Finished blocks as they come, and None every `TICK_S` in which there is none."""
    while True:
        try:
            table = finished.get(timeout=TICK_S)
        except queue.Empty:
            yield None
            continue
        if table is None:
            return
        if isinstance(table, BaseException):
            raise table
        yield table


def _with_events(counts: Counts, job: Job, happened: Mapping[str, int]) -> Counts:
    """The counts with what the stages reported so far."""
    groups = tuple(
        Groups(stage.name, min(total, happened.get(f"{stage.name} ready", 0)), total)
        for stage, total in _group_stages(job)
    )
    return replace(
        counts,
        groups=groups,
        prompts=happened.get("prompt encoded", 0),
        inverted=happened.get("video inverted", 0),
    )


def _group_stages(job: Job) -> tuple[tuple[type[GroupStage], int], ...]:
    """The stages with ranks, and how many groups each has."""
    cluster = job.cluster
    return (
        (EncodePrompts, cluster.prompts.groups),
        (InvertVideos, cluster.inversion.groups),
        (ReconstructEdits, cluster.reconstruction.groups),
    )


def _with_results(counts: Counts, table: pa.Table) -> Counts:
    """The counts with the result rows of a block."""
    errors, failures = dict(counts.errors), list(counts.failures)
    rows = table.select(["status", "video_id", "edit_id", "error_code", "error"]).to_pylist()
    failed = [row for row in rows if row["status"] != "ok"]
    for row in failed:
        code = row["error_code"]
        errors[code] = errors.get(code, 0) + 1
        if errors[code] <= FAILURES_OF_A_CODE:
            message = next(iter((row["error"] or "").splitlines()), "")
            failures.append(Failure(row["video_id"], row["edit_id"], code, message))
    return replace(
        counts,
        edited=counts.edited + len(rows) - len(failed),
        failed=counts.failed + len(failed),
        errors=errors,
        failures=tuple(failures),
    )
