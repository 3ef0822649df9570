"""What a run takes of the driver: memory and time for each row, with stages that work at once.

    python -m tests.benchmarks.scale.driver [--refused ROWS ...] [--groups ROWS ...]

`refused` rows go from the check to the results; a manifest of them has no wave. `groups` are rows
that go through a wave of Ray Data, whose stages have no ranks; `waves` are such rows in waves of
`ROWS_OF_A_WAVE`. All have one edit, which fails.
Each run is a process of its own; `memory` is what it takes at its end, and at most, above what it
had when its first rows came; `driver` is the time that its process computed, so no driver can have
more rows a second than that allows, however many groups there are.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest

from cluster import dataflow
from cluster.driver import graph
from cluster.job import Job
from cluster.layout.work import Amount
from cluster.pending.rows import Checked
from cluster.progress import Counts
from cluster.results.schema import SCHEMA
from cluster.stages import first_prompts
from cluster.stages.blocks import WORK, EditWork, VideoWork, rebuilt, work_of
from cluster.stages.first_prompts import Prepared
from pipeline.errors import ErrorCode
from pipeline.records import EditResult
from tests.benchmarks.scale import measured_apart
from tests.in_process import run_in_process
from tests.small_jobs import a_job

REFUSED = (10_000, 50_000, 200_000)
GROUPS = (250, 500, 1_000)
WAVES = (250, 1_000, 3_000)
ROWS_OF_A_WAVE = 250
ROWS_OF_A_TABLE = 4096
WHY = "there is no such file; its folder is there: check the name"


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--refused", type=int, nargs="*", default=REFUSED)
    options.add_argument("--groups", type=int, nargs="*", default=GROUPS)
    options.add_argument("--waves", type=int, nargs="*", default=WAVES)
    options.add_argument("--case", nargs=2, help="measure one, in this process")
    given = options.parse_args()
    if given.case:
        print(measured(given.case[0], int(given.case[1])))
        return
    print(
        f"## The driver\n\nOne edit a row, which fails at once; {os.cpu_count()} cores.\n\n"
        "| way | rows | s | rows/s | driver, ms a row | memory at the end, MB | at most, MB | "
        "bytes a row more |\n|---|---|---|---|---|---|---|---|"
    )
    ways = {"refused": given.refused, "groups": given.groups, "waves": given.waves}
    for way, sizes in ways.items():
        before: Measured | None = None
        for rows in sizes:
            found = Measured.read(measured_apart(__spec__.name, way, str(rows)))
            more = f"{found.bytes_a_row(before):.0f}" if before else ""
            print(f"| {way} | {found} | {more} |", flush=True)
            before = found


@dataclass(frozen=True)
class Measured:
    """A run.

    Args:
        computed: seconds of a core that the driver's process took.
        at_end, at_most: bytes above what there was at its beginning.
    """

    rows: int
    seconds: float
    computed: float
    at_end: int
    at_most: int

    def __str__(self) -> str:
        speed = self.rows / self.seconds
        memory = f"{self.at_end / 1e6:.0f} | {self.at_most / 1e6:.0f}"
        computed = f"{1e3 * self.computed / self.rows:.1f}"
        return f"{self.rows:,} | {self.seconds:.1f} | {speed:.0f} | {computed} | {memory}"

    def bytes_a_row(self, before: Measured) -> float:
        return (self.at_most - before.at_most) / (self.rows - before.rows)

    @classmethod
    def read(cls, text: str) -> Measured:
        rows, seconds, computed, *memory = text.splitlines()[-1].split()
        return cls(int(rows), float(seconds), float(computed), *map(int, memory))


def measured(way: str, rows: int) -> str:
    """A run in this process, as `Measured.read` takes it."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        job = a_job()
        job = replace(job, editing=replace(job.editing, output=folder))
        stages = {name: Failing if name == "editing" else Same for name in graph.GROUP_STAGES}
        stack.enter_context(patch.object(graph, "GROUP_STAGES", stages))
        if way == "refused":
            run_in_process(stack.enter_context(pytest.MonkeyPatch.context()))
        else:
            stack.enter_context(patch.object(dataflow, "preflight", lambda _: []))
        if way == "waves":
            stack.enter_context(patch.object(dataflow, "most_rows", lambda _: ROWS_OF_A_WAVE))
        # The checkpoint of this job is none.
        prepare = patch.object(first_prompts, "prepare", lambda *_: Prepared())
        stack.enter_context(prepare)
        pending = Rows(rows, job.run if way == "refused" else "")
        began, computed = time.monotonic(), time.process_time()
        counts = dataflow.run(job, pending, pending.look)  # type: ignore[arg-type]
        seconds, computed = time.monotonic() - began, time.process_time() - computed
    assert (counts.edited, counts.failed) == (0, rows)
    most = max(resident(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return f"{rows} {seconds} {computed} {resident() - pending.before} {most - pending.before}"


@dataclass
class Rows:
    """What is pending: so many rows.

    Args:
        run: refuses all of them, in this run's name; else groups get them.
    """

    rows: int
    run: str
    before: int = 0

    @property
    def amount(self) -> Amount:
        return Amount(self.rows, self.rows)

    @property
    def edits(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[Checked]:
        for first in range(0, self.rows, ROWS_OF_A_TABLE):
            some = range(first, min(first + ROWS_OF_A_TABLE, self.rows))
            if self.run:
                yield Checked(WORK.empty_table(), failed(some, self.run))
            else:
                videos = [a_video(number) for number in some]
                origins = pa.table({"row": pa.array(some)})
                yield Checked(rebuilt(origins, videos, range(len(some))), SCHEMA.empty_table())

    def look(self, _: Counts) -> None:
        """The driver's progress; the first time there are no rows yet."""
        self.before = self.before or resident()


def a_video(number: int) -> VideoWork:
    edits = (EditWork("a fox in the snow", edit_id="fox"),)
    return VideoWork(f"s3://clips/{number}.mp4", f"v{number}", edits=edits)


def a_failure(video_id: str, run: str) -> EditResult:
    return EditResult(
        video_id=video_id,
        edit_id="fox",
        video=f"s3://clips/{video_id}.mp4",
        prompt="a fox in the snow",
        status="failed",
        error_code=ErrorCode.VIDEO_NOT_FOUND,
        error=WHY,
        run=run,
        finished_at=datetime.now(UTC),
    )


def failed(rows: Sequence[int], run: str) -> pa.Table:
    """The results of rows that are refused."""
    results = [a_failure(f"v{number}", run) for number in rows]
    return rebuilt(pa.table({"row": pa.array(rows)}), results, range(len(rows)), SCHEMA)


class Same:
    """A stage that has nothing to do."""

    def __init__(self, *_: Any) -> None: ...

    def __call__(self, table: pa.Table) -> pa.Table:
        return table


class Failing(Same):
    """A stage whose edits fail at once."""

    def __init__(self, job: Job, *_: Any) -> None:
        self.run = job.run

    def __call__(self, table: pa.Table) -> pa.Table:
        results = [a_failure(str(video.video_id), self.run) for video in work_of(table)]
        return rebuilt(table, results, range(len(results)), SCHEMA)


def resident() -> int:
    """Bytes that this process has in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
