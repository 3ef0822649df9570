"""The graph of a job in Ray Data, and the driver that runs it.

    read -> check rows -> encode prompts -> invert -> fan out -> reconstruct -> results

Blocks hold one row from the check on, so that a finished video goes on at once and every actor of a
pool gets work. The driver takes finished rows as they come and stores them in batches.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.fs

from cluster import quiet  # noqa: F401 - before Ray, which reads it when it is imported

import ray  # isort: skip
import ray.data  # isort: skip

from cluster.garbage import tidy
from cluster.job import CannotRun, Job
from cluster.placement import Placement, configure, start_ray, threads
from cluster.results.ledger import Keys, ResultWriter
from cluster.settings import GroupSettings
from cluster.stages.check import CheckRows
from cluster.stages.invert import EncodePrompts, FanOut, InvertVideos
from cluster.stages.reconstruct import ReconstructEdits
from pipeline.storage import Folder, split

FLUSH_S = 5.0
"""Finished rows are stored at least this often: what a killed driver loses is made again."""
TICK_S = 0.2
ENCODER = GroupSettings()
SLOT = {"num_cpus": 0.1}
"""What a stage without ranks takes: next to nothing."""
ROWS_PER_PROMPT_BLOCK = 32


@dataclass
class Counts:
    """How far a run has come."""

    inverted: int = 0
    edited: int = 0
    failed: int = 0
    errors: dict[str, int] = field(default_factory=dict)


def run(
    job: Job,
    done: Keys,
    repeated: Mapping[str, str],
    on_progress: Callable[[Counts], None],
) -> Counts:
    """Run a job to its end and store its results.

    Args:
        done: keys of edits that are not pending.
        repeated: the digest of the first row of each `video_id` that several rows have.
        on_progress: called about five times a second, in this thread.

    Raises:
        CannotRun: the cluster is too small, or the ranks of a group cannot work at all.
    """
    placement = start_ray(job)
    configure(job)
    tally = ray.remote(num_cpus=0)(Tally).remote()
    writer = ResultWriter(Folder(job.editing.output), job.run)
    counts = Counts()
    finished: queue.SimpleQueue[pa.Table | BaseException | None] = queue.SimpleQueue()
    dataset = graph(job, done, repeated, placement, tally)
    threading.Thread(target=_consume, args=(dataset, finished), daemon=True).start()
    pending: list[pa.Table] = []
    flushed = time.monotonic()
    try:
        for table in _ticks(finished):
            if table is not None:
                pending.append(table)
                _count(counts, table)
            else:
                counts.inverted = ray.get(tally.inverted.remote())
            if pending and time.monotonic() - flushed > FLUSH_S:
                writer.write(pending)
                pending, flushed = [], time.monotonic()
            on_progress(counts)
    except Exception as error:
        if reason := ray.get(tally.broken.remote()):
            raise CannotRun(f"a rank group could not start: {reason}") from error
        raise
    finally:
        if pending:
            writer.write(pending)
    counts.inverted = ray.get(tally.inverted.remote())
    on_progress(counts)
    tidy(job)
    return counts


def graph(
    job: Job, done: Keys, repeated: Mapping[str, str], placement: Placement, tally: Any
) -> ray.data.Dataset:
    """The lazy dataset of a job's result rows."""
    fs = split(job.files[0])[0]
    paths = [split(uri)[1] for uri in job.files]
    filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))

    report = DriverReport(tally)
    cluster, device = job.cluster, placement.device
    prompt_device = device if cluster.prompts.gpus else "cpu"
    # Which files are the manifest's is settled; Ray would leave out those that end otherwise.
    endings = sorted({path.rsplit(".", 1)[-1] for path in paths})
    # Ray would start 32 processes to read footers, for a manifest of one file too.
    os.environ.setdefault("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", str(min(32, len(paths))))
    rows = ray.data.read_parquet(
        paths, filesystem=filesystem, partitioning=None, file_extensions=endings
    )
    rows = _stage(rows, CheckRows, (job, done, repeated), batch_size=None)
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


class Tally:
    """An actor that holds what the stages report to the driver; results do not depend on it."""

    def __init__(self) -> None:
        self.videos = 0
        self.reason = ""

    def add(self, videos: int) -> None:
        self.videos += videos

    def inverted(self) -> int:
        return self.videos

    def set_reason(self, reason: str) -> None:
        self.reason = reason

    def broken(self) -> str:
        return self.reason


@dataclass(frozen=True)
class DriverReport:
    """A `cluster.stages.group.Report` to the driver through its `Tally`."""

    tally: Any

    def inverted(self, videos: int) -> None:
        self.tally.add.remote(videos)

    def broken(self, reason: str) -> None:
        ray.get(self.tally.set_reason.remote(reason))


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


def _consume(
    dataset: ray.data.Dataset, finished: queue.SimpleQueue[pa.Table | BaseException | None]
) -> None:
    try:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            finished.put(table)
        finished.put(None)
    except BaseException as error:
        finished.put(error)


def _ticks(
    finished: queue.SimpleQueue[pa.Table | BaseException | None],
) -> Iterator[pa.Table | None]:
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


def _count(counts: Counts, table: pa.Table) -> None:
    for status, code in zip(
        table["status"].to_pylist(), table["error_code"].to_pylist(), strict=True
    ):
        if status == "ok":
            counts.edited += 1
        else:
            counts.failed += 1
            counts.errors[code] = counts.errors.get(code, 0) + 1
