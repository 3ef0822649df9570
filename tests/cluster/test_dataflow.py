"""The driver of the graph: what it stores, what it passes on, and what stops it.

The graph is a list of blocks here; `tests/jobs/test_run.py` has the real one.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from cluster import dataflow
from cluster.job import CannotRun, Job
from cluster.layout.choice import Pool
from cluster.layout.placement import place
from cluster.layout.work import Amount
from cluster.progress import Counts, Failure, Groups
from cluster.results.ledger import Keys, read_parts
from cluster.results.schema import SCHEMA
from cluster.settings import GroupSettings
from cluster.stages.first_prompts import Prepared
from pipeline.errors import Unreadable
from pipeline.settings import TrajectorySettings
from pipeline.storage import Folder
from tests.cluster.layout.test_placement import gpu_nodes
from tests.small_jobs import a_job

HAPPENED = {"prompts ready": 1, "inversion ready": 2, "prompt encoded": 7, "video inverted": 3}


def a_block(*rows: tuple[str, str | None, str | None]) -> pa.Table:
    """Result rows of edit id, error code and error."""
    values = [
        {
            "video_id": "v",
            "edit_id": name,
            "status": "failed" if code else "ok",
            "error_code": code,
            "error": error,
        }
        for name, code, error in rows
    ]
    return pa.Table.from_pylist(values, schema=SCHEMA)


KEPT, NEVER = TrajectorySettings(), TrajectorySettings(keep="never")


@pytest.mark.parametrize(
    ("stage", "groups", "amount", "trajectory", "rows"),
    [
        ("editing", 4, Amount(4, 16), KEPT, 1),
        ("editing", 4, Amount(5, 20), KEPT, 2),
        ("editing", 4, None, KEPT, 2),
        ("inversion", 4, Amount(3, 300), KEPT, 1),
        ("reconstruction", 4, Amount(2, 16), KEPT, 1),  # 4 units of 4 edits
        ("reconstruction", 4, Amount(2, 17), KEPT, 2),
        ("reconstruction", 4, Amount(4, 100), NEVER, 1),
        ("prompts", 1, Amount(4, 16), KEPT, 1),
    ],
)
def test_no_group_takes_two_rows_where_another_would_have_none(
    stage: str, groups: int, amount: Amount | None, trajectory: TrajectorySettings, rows: int
) -> None:
    job = a_job()
    job = replace(job, editing=replace(job.editing, trajectory=trajectory))
    pool = Pool(stage, groups, GroupSettings(), 1)
    assert dataflow.rows_at_once(job, pool, amount) == rows


class Graph:
    """Blocks, and what happens after them."""

    def __init__(self, blocks: list[pa.Table], failure: BaseException | None) -> None:
        self.blocks, self.failure = blocks, failure

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        yield from self.blocks
        if self.failure:
            raise self.failure


class FakeEvents:
    tally = None
    broken = ""

    def so_far(self) -> dict[str, int]:
        return HAPPENED

    at_the_end = so_far

    def reason(self) -> str:
        return self.broken


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = a_job(inversion=GroupSettings(groups=3), reconstruction=GroupSettings(groups=1))
    return replace(job, editing=replace(job.editing, output=str(tmp_path)))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, job: Job) -> Callable[..., Counts]:
    """Runs blocks through the driver; a list gets all that it says of its progress."""

    def run(
        *blocks: pa.Table, failure: BaseException | None = None, shown: list[Counts] | None = None
    ) -> Counts:
        said = [] if shown is None else shown
        monkeypatch.setattr(dataflow, "graph", lambda *_: Graph(list(blocks), failure))
        return dataflow.run(job, Keys.of([]), {}, said.append)

    placement = place(job, gpu_nodes(8))
    monkeypatch.setattr(dataflow, "connected", lambda *_: nullcontext(placement))
    monkeypatch.setattr(dataflow, "preflight", lambda _: [])
    monkeypatch.setattr(dataflow.first_prompts, "prepare", lambda *_: Prepared())
    monkeypatch.setattr(dataflow, "configure", lambda _: None)
    monkeypatch.setattr(dataflow, "Events", FakeEvents)
    return run


def stored(job: Job) -> list[str]:
    rows = (row for _, table in read_parts(Folder(job.editing.output)) for row in table.to_pylist())
    return [row["edit_id"] for row in rows]


def test_what_comes_out_of_the_graph_is_stored_and_counted(
    run: Callable[..., Counts], job: Job
) -> None:
    shown: list[Counts] = []
    counts = run(
        a_block(("a", None, None), ("b", "deadline", "late\nits log")),
        a_block(("c", "deadline", "late"), ("d", "storage", None)),
        shown=shown,
    )
    assert counts == Counts(
        notes=(
            "3 GPUs stay idle: cluster.reconstruction.groups is 1. Leave it out, and a run takes "
            "all GPUs that are free",
        ),
        groups=(
            Groups("prompts", 1, 1),
            Groups("inversion", 2, 3),
            Groups("reconstruction", 0, 1),
        ),
        prompts=7,
        inverted=3,
        edited=1,
        failed=3,
        errors={"deadline": 2, "storage": 1},
        failures=(
            Failure("v", "b", "deadline", "late"),
            Failure("v", "c", "deadline", "late"),
            Failure("v", "d", "storage", ""),
        ),
    )
    assert stored(job) == ["a", "b", "c", "d"]
    assert [one.ready for one in shown[0].groups] == [0, 0, 0], "nothing is known before it is"
    assert shown[-1] == counts


def test_only_the_first_failures_of_each_code_are_passed_on(run: Callable[..., Counts]) -> None:
    rows = [(f"{i}", "deadline", "late") for i in range(200)]
    counts = run(a_block(*rows), a_block(("x", "storage", "full")))
    assert counts.errors == {"deadline": 200, "storage": 1}
    assert [failure.edit_id for failure in counts.failures] == ["0", "1", "2", "3", "4", "x"]


@pytest.mark.parametrize(
    "failure",
    [
        ray.exceptions.ActorDiedError(),
        ray.exceptions.WorkerCrashedError(),
        ray.exceptions.OutOfMemoryError("a worker used too much"),
    ],
)
def test_a_process_that_ray_lost_ends_the_job_with_the_way_out_and_what_is_done_is_stored(
    run: Callable[..., Counts], job: Job, failure: Exception
) -> None:
    with pytest.raises(CannotRun) as caught:
        run(a_block(("a", None, None)), failure=failure)
    text = str(caught.value)
    assert text.startswith(f"Ray lost a process of the job: {type(failure).__name__}: ")
    assert "run the same command again" in text
    assert "\n" not in text
    assert stored(job) == ["a"]


def test_ranks_that_cannot_work_end_the_job_with_their_reason(
    run: Callable[..., Counts], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEvents, "broken", "no such file")
    with pytest.raises(CannotRun, match="a rank group could not start: no such file"):
        run(failure=RuntimeError("whatever Ray makes of it"))


def test_rows_that_a_task_cannot_read_end_the_job_with_the_file_and_what_is_done_is_stored(
    run: Callable[..., Counts], job: Job
) -> None:
    damaged = Unreadable("manifest m.parquet: its rows cannot be read")
    failure = ray.exceptions.RayTaskError("read", "Traceback ...", damaged).as_instanceof_cause()
    assert str(failure) != str(damaged)  # a traceback too
    with pytest.raises(Unreadable) as caught:
        run(a_block(("a", None, None)), failure=failure)
    assert str(caught.value) == str(damaged)
    assert stored(job) == ["a"]


def test_an_error_of_the_program_stays_one(run: Callable[..., Counts]) -> None:
    with pytest.raises(ZeroDivisionError):
        run(failure=ZeroDivisionError())


def test_a_run_that_is_stopped_stores_what_it_has(
    run: Callable[..., Counts], job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = dataflow._ticks

    def stopped(finished: Any) -> Iterator[pa.Table | None]:
        yield next(ticks(finished))
        raise KeyboardInterrupt

    monkeypatch.setattr(dataflow, "_ticks", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(a_block(("a", None, None)))
    assert stored(job) == ["a"]
