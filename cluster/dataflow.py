"""The graph of a job in Ray Data, and the driver that runs it.

    read -> check rows -> encode prompts -> invert, reconstruct -> results               (shared)
    read -> check rows -> encode prompts -> invert -> fan out -> reconstruct -> results   (split)

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
from cluster.layout.choice import Pool
from cluster.layout.placement import Placement
from cluster.layout.work import Amount
from cluster.manifest import ManifestFiles
from cluster.preflight.driver import preflight
from cluster.progress import Counts, Failure, Groups
from cluster.reports import DriverReport, Events
from cluster.results.ledger import Keys, ResultWriter
from cluster.selection.entries import Selection
from cluster.stages import first_prompts
from cluster.stages.check import CheckRows
from cluster.stages.edit import EditVideos, ReconstructEdits
from cluster.stages.group import GroupStage
from cluster.stages.invert import FanOut, InvertVideos
from cluster.stages.prompts import EncodePrompts
from cluster.waiting import Waiting
from pipeline.errors import Unreadable
from pipeline.storage import Folder

FLUSH_S = 5.0
"""Finished rows are stored at least this often: what a killed driver loses is made again."""
TICK_S = 0.2
SLOT = {"num_cpus": 0.1}
"""What a stage without ranks takes: next to nothing."""
GROUP_STAGES: Mapping[str, type[GroupStage]] = {
    stage.name: stage for stage in (EncodePrompts, InvertVideos, ReconstructEdits, EditVideos)
}
ROWS_PER_PROMPT_BLOCK = 32
ROWS_OF_A_GROUP = 2
"""A group's owner takes so many at a time: while the accelerator works for one, the other is read,
or its edits are encoded, measured and written. See `rows_at_once`."""
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
    amount: Amount | None = None,
) -> Counts:
    """Run a job to its end and store its results.

    Args:
        done: keys of edits that are not pending.
        repeated: the digest of the first row of each `video_id` that several rows have.
        on_progress: called about five times a second, in this thread.
        selection: the edits to make; all that are pending by default.
        rows: the rows of the manifest to take; all of them by default.
        amount: what is pending, where that is known.

    Raises:
        CannotRun: there is no Ray, the cluster is too small, or the ranks of a group cannot work
            at all.
        Unreadable: rows of the manifest cannot be read.
    """
    with connected(job, amount) as placement:
        warnings = preflight(job)
        placement = replace(placement, notes=(*placement.notes, *warnings))
        configure(job)
        check = (job, done, repeated, selection)
        before = Counts(notes=placement.notes, groups=(Groups(EncodePrompts.name, 1, 1),))
        first = first_prompts.First(CheckRows(*check), rows)
        ready = first_prompts.prepare(job, placement, first, lambda: on_progress(before))
        placement = replace(placement, notes=(*placement.notes, *ready.notes))
        events = Events()
        report = DriverReport(events.tally)
        dataset = graph(job, check, placement, report, rows, ready, amount)
        finished: Finished = queue.SimpleQueue()
        threading.Thread(target=_consume, args=(dataset, finished), daemon=True).start()
        try:
            return _store(job, placement, finished, events, on_progress)
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
    job: Job,
    placement: Placement,
    finished: Finished,
    events: Events,
    on_progress: Callable[[Counts], None],
) -> Counts:
    """Store finished rows as they come, and show how far the run is."""
    writer = ResultWriter(Folder(job.editing.output), job.run)
    counts = _with_events(Counts(notes=placement.notes), placement, {})
    on_progress(counts)
    pending: list[pa.Table] = []
    flushed = time.monotonic()
    waiting = Waiting()
    try:
        for table in _ticks(finished):
            if table is not None:
                pending.append(table)
                counts = _with_results(counts, table)
            counts = _with_events(counts, placement, events.so_far())
            counts = replace(counts, notes=counts.notes + waiting.note(time.monotonic()))
            if pending and time.monotonic() - flushed > FLUSH_S:
                writer.write(pending)
                pending, flushed = [], time.monotonic()
            on_progress(counts)
    finally:
        if pending:
            writer.write(pending)
    counts = _with_events(counts, placement, events.at_the_end())
    on_progress(counts)
    return counts


def graph(
    job: Job,
    check: tuple[Any, ...],
    placement: Placement,
    report: DriverReport,
    taken: pa.Table | None = None,
    ready: first_prompts.Prepared | None = None,
    amount: Amount | None = None,
) -> ray.data.Dataset:
    """The lazy dataset of a job's result rows.

    Args:
        check: the arguments of `CheckRows`.
        taken: the rows of the manifest; it is read by default.
        ready: what is known of the first prompts, where that was looked at.
        amount: what is pending, where that is known.
    """
    rows = _read(job.files) if taken is None else ray.data.from_arrow(taken)
    rows = _stage(rows, CheckRows, check, batch_size=None)
    # A block of the manifest can hold 10^5 rows: encoding them all would hold the first video up.
    rows = rows.repartition(target_num_rows_per_block=ROWS_PER_PROMPT_BLOCK)
    for pool in placement.pools:
        ready = ready or first_prompts.Prepared()
        at_once = rows_at_once(job, pool, amount)
        rows = _group_stage(rows, job, report, placement, pool, ready, at_once)
        if pool.stage == InvertVideos.name:
            rows = _stage(rows, FanOut, (job,))
        if pool is not placement.pools[-1]:
            rows = _one_row_a_block(rows)
    return rows


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


def rows_at_once(job: Job, pool: Pool, amount: Amount | None) -> int:
    """Rows that each group of a pool takes at a time.

    Ray Data gives rows to the groups that are ready. Where there are no more rows than groups, the
    first ones to load would take two each, and the last ones none.
    """
    if pool.stage == EncodePrompts.name:
        return 1
    if amount is None:
        return ROWS_OF_A_GROUP
    split = pool.stage == ReconstructEdits.name
    rows = amount.units(job.editing) if split else amount.videos
    return ROWS_OF_A_GROUP if rows > pool.groups else 1


def _group_stage(
    rows: ray.data.Dataset,
    job: Job,
    report: DriverReport,
    placement: Placement,
    pool: Pool,
    ready: first_prompts.Prepared,
    at_once: int,
) -> ray.data.Dataset:
    """A stage with ranks."""
    stage, options = GROUP_STAGES[pool.stage], placement.options(pool)
    device = "gpu" if placement.on_gpus(pool) else "cpu"
    arguments: tuple[Any, ...] = (job, report, pool.shape, device, placement.threads)
    if stage is EncodePrompts:
        job = first_prompts.encoding(job, placement)
        # Several groups share the prompts out as their rows come: perhaps not all have one.
        arguments = (job, *arguments[1:], ready.missing and pool.groups == 1)
        options |= {"memory": ready.memory} if ready.memory else {}
    return _stage(
        rows,
        stage,
        arguments,
        groups=pool.groups,
        at_once=at_once,
        in_flight=2 if stage is EncodePrompts else at_once,
        # Ray Data wants a number where there are GPUs; the blocks are as large.
        batch_size=ROWS_PER_PROMPT_BLOCK if stage is EncodePrompts else 1,
        options=options,
    )


def _stage(
    rows: ray.data.Dataset,
    stage: type,
    arguments: tuple[Any, ...],
    *,
    groups: int = 1,
    at_once: int = 1,
    in_flight: int = 2,
    batch_size: int | None = 1,
    options: Mapping[str, Any] = SLOT,
) -> ray.data.Dataset:
    # With more in flight, rows would wait with a busy actor while another has none.
    actors = ray.data.ActorPoolStrategy(
        size=groups,
        max_tasks_in_flight_per_actor=in_flight,
        max_concurrent_calls_per_actor=at_once if at_once > 1 else None,
        enable_true_multi_threading=at_once > 1,
    )
    return rows.map_batches(
        stage,
        fn_constructor_args=arguments,
        batch_size=batch_size,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=actors,
        **options,
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


def _with_events(counts: Counts, placement: Placement, happened: Mapping[str, int]) -> Counts:
    """The counts with what the stages reported so far."""
    groups = tuple(
        Groups(p.stage, min(p.groups, happened.get(f"{p.stage} ready", 0)), p.groups)
        for p in placement.pools
    )
    return replace(
        counts,
        groups=groups,
        prompts=happened.get("prompt encoded", 0),
        inverted=happened.get("video inverted", 0),
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
