"""The driver: what it stores, what it passes on, and what it does with what a wave leaves.

The graph is a list of blocks here; `tests/jobs/test_run.py` has the real one.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from cluster import dataflow
from cluster.driver import leaving, placing
from cluster.driver import wave as waves
from cluster.driver.control import Owner, State
from cluster.driver.graph import rows_at_once
from cluster.driver.lost import LOGGER
from cluster.events.stored import read_segments
from cluster.job import CannotRun, Job
from cluster.layout.choice import Pool
from cluster.layout.placement import place
from cluster.layout.work import Amount
from cluster.pending.rows import Checked
from cluster.progress import Counts, Failure, Groups
from cluster.results.parts import read_parts
from cluster.results.schema import SCHEMA
from cluster.settings import GroupSettings
from cluster.stages.blocks import WORK, EditWork, VideoWork, rebuilt
from cluster.stages.first_prompts import Prepared
from pipeline.errors import Unreadable
from pipeline.settings import TrajectorySettings
from pipeline.storage import Folder
from tests.cluster.layout.test_placement import gpu_nodes
from tests.in_process import Control
from tests.small_jobs import a_job

HAPPENED = {"prompts ready": 1, "inversion ready": 2, "prompt encoded": 7, "video inverted": 3}


def a_block(*rows: tuple[str, str | None, str | None], video: str = "v") -> pa.Table:
    """Result rows of edit id, error code and error."""
    values = [
        {
            "video_id": video,
            "edit_id": name,
            "status": "failed" if code else "ok",
            "error_code": code,
            "error": error,
        }
        for name, code, error in rows
    ]
    return pa.Table.from_pylist(values, schema=SCHEMA)


def work(**videos: str) -> pa.Table:
    """Rows for groups: the edit ids of each video, one letter each."""
    records = [
        VideoWork(f"{name}.mp4", name, edits=tuple(EditWork(f"{i}!", edit_id=i) for i in ids))
        for name, ids in videos.items()
    ]
    origins = pa.table({"row": list(range(len(records)))})
    return rebuilt(origins, records, range(len(records)))


NONE = SCHEMA.empty_table()

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
    assert rows_at_once(job, pool, amount) == rows


class Given(list[Checked]):
    """What is pending, given."""

    amount, edits = Amount(1, 1), 1


class Graph:
    """Blocks, and what happens after them; `hold` keeps the wave from ending."""

    def __init__(
        self,
        blocks: Sequence[pa.Table],
        failure: BaseException | None = None,
        hold: threading.Event | None = None,
    ) -> None:
        self.blocks, self.failure, self.hold = blocks, failure, hold

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        yield from self.blocks
        if self.hold:
            self.hold.wait(20)
        if self.failure:
            raise self.failure


class FakeControl(Control):
    """The real one is an actor: `tests/cluster/driver`."""

    owners: dict[str, Owner] = {}
    said: list[str] = []
    answer = State()

    def begin(self) -> None:
        self.said.append("begin")

    def say(self, word: str) -> None:
        if self.said[-1:] != [word]:
            self.said.append(word)

    def so_far(self) -> State:
        known, self.answer = self.answer, State(events=HAPPENED)
        return replace(known, owners=self.owners)

    at_the_end = so_far


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = a_job(
        inversion=GroupSettings(groups=3), reconstruction=GroupSettings(groups=1), stop_grace_s=0.5
    )
    return replace(job, editing=replace(job.editing, output=str(tmp_path)))


Run = Callable[..., Counts]


@pytest.fixture
def graphs() -> list[pa.Table]:
    """The rows of each wave that began."""
    return []


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, job: Job, graphs: list[pa.Table]) -> Run:
    """Runs waves of blocks through the driver, for the rows that are given."""

    def run(rows: pa.Table, *of_waves: Graph, refused: pa.Table = NONE, **more: Any) -> Counts:
        left = iter(of_waves)

        def graph(_: Job, table: pa.Table, *__: Any) -> Graph:
            graphs.append(table)
            return next(left)

        monkeypatch.setattr(dataflow, "graph", graph)
        pending = more.pop("pending", Given([Checked(rows, refused)]))
        return dataflow.run(job, pending, more.pop("shown", []).append, **more)

    placement = place(job, gpu_nodes(8))
    monkeypatch.setattr(dataflow, "connected", lambda *_: nullcontext(placement))
    monkeypatch.setattr(placing, "placed_on", lambda *_: placement)
    monkeypatch.setattr(placing, "alive_nodes", list)
    monkeypatch.setattr(dataflow, "alive_nodes", list)
    monkeypatch.setattr(dataflow, "preflight", lambda _: [])
    monkeypatch.setattr(dataflow.first_prompts, "prepare", lambda *_: Prepared())
    monkeypatch.setattr(dataflow, "configure", lambda _: None)
    monkeypatch.setattr(dataflow, "THREAD_S", 0.1)  # no connection ends these waves
    monkeypatch.setattr(dataflow, "Control", FakeControl)
    monkeypatch.setattr(FakeControl, "said", [])
    monkeypatch.setattr(FakeControl, "owners", {})
    return run


def stored(job: Job) -> list[str]:
    rows = (row for _, table in read_parts(Folder(job.editing.output)) for row in table.to_pylist())
    return [row["edit_id"] for row in rows]


def ids_of(table: pa.Table) -> dict[str, list[str]]:
    return {row["video_id"]: [e["edit_id"] for e in row["edits"]] for row in table.to_pylist()}


def test_what_comes_out_of_the_graph_is_stored_and_counted(run: Run, job: Job) -> None:
    shown: list[Counts] = []
    blocks = (
        a_block(("a", None, None), ("b", "deadline", "late\nits log")),
        a_block(("c", "deadline", "late"), ("d", "storage", None)),
    )
    counts = run(work(v="abcd"), Graph(blocks), shown=shown)
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
        latest=(
            Failure("v", "b", "deadline", "late"),
            Failure("v", "c", "deadline", "late"),
            Failure("v", "d", "storage", ""),
        ),
    )
    assert stored(job) == ["a", "b", "c", "d"]
    loading = next(one for one in shown if one.groups)
    assert [one.ready for one in loading.groups] == [0, 0, 0], "nothing is known before it is"
    assert replace(shown[-1], doing="") == counts


def test_only_the_first_failures_of_each_code_are_passed_on(run: Run) -> None:
    rows = [(f"{i}", "deadline", "late") for i in range(200)]
    refused = pa.concat_tables([a_block(*rows), a_block(("x", "storage", "full"))])
    counts = run(work(v="a"), Graph([a_block(("a", None, None))]), refused=refused)
    assert counts.errors == {"deadline": 200, "storage": 1}
    assert [failure.edit_id for failure in counts.failures] == ["0", "1", "2", "3", "4", "x"]


def test_what_the_check_refuses_is_stored_without_a_wave(
    run: Run, job: Job, graphs: list[pa.Table]
) -> None:
    counts = run(WORK.empty_table(), refused=a_block(("x", "bad_uri", "no")))
    assert (counts.failed, stored(job), graphs) == (1, ["x"], [])


def test_what_a_wave_leaves_is_in_the_next_one_with_its_own_edits_and_columns(
    run: Run, job: Job, graphs: list[pa.Table]
) -> None:
    counts = run(
        work(u="ab", v="cd", w="e"),
        Graph([a_block(("a", None, None), video="u"), a_block(("e", None, None), video="w")]),
        Graph([a_block(("c", None, None), ("d", None, None))]),
        Graph([a_block(("b", "storage", "full"), video="u")]),
    )
    assert [ids_of(one) for one in graphs] == [
        {"u": ["a", "b"], "v": ["c", "d"], "w": ["e"]},
        {"u": ["b"], "v": ["c", "d"]},
        {"u": ["b"]},
    ]
    assert graphs[1]["row"].to_pylist() == [0, 1]
    assert (counts.edited, counts.failed) == (4, 1)
    assert sorted(stored(job)) == ["a", "b", "c", "d", "e"]


def test_a_block_that_comes_twice_is_stored_once(run: Run, job: Job) -> None:
    one, both = a_block(("a", None, None)), a_block(("a", None, None), ("b", None, None))
    counts = run(work(v="ab"), Graph([one, both]))
    assert (counts.edited, stored(job)) == (2, ["a", "b"])


def test_a_long_manifest_comes_in_waves(
    run: Run, graphs: list[pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waves, "ROWS", 3)
    monkeypatch.setattr(waves, "ROWS_A_GROUP", 0)
    tables = [work(**{f"v{i}{j}": "a" for j in range(2)}) for i in range(4)]
    names = [f"v{i}{j}" for i in range(4) for j in range(2)]
    blocks = [a_block(("a", None, None), video=name) for name in names]
    pending = Given(Checked(table, NONE) for table in tables)
    run(NONE, Graph(blocks[:3]), Graph(blocks[3:6]), Graph(blocks[6:]), pending=pending)
    assert [len(table) for table in graphs] == [3, 3, 2]
    assert [name for table in graphs for name in ids_of(table)] == names


@pytest.mark.parametrize(
    "failure",
    [
        ray.exceptions.ActorDiedError(),
        ray.exceptions.WorkerCrashedError(),
        ray.exceptions.OutOfMemoryError("a worker used too much"),
        ZeroDivisionError("of the program"),
    ],
)
def test_what_ends_a_wave_is_followed_by_another_wave(
    run: Run, job: Job, failure: Exception
) -> None:
    counts = run(
        work(v="ab"),
        Graph([a_block(("a", None, None))], failure),
        Graph([a_block(("b", None, None))]),
    )
    assert (counts.edited, stored(job)) == (2, ["a", "b"])
    assert type(failure).__name__ in counts.notes[-1]


def test_waves_that_bring_nothing_end_the_job_with_the_reason_and_what_is_done_is_stored(
    run: Run, job: Job
) -> None:
    dead = Graph([], ray.exceptions.WorkerCrashedError())
    with pytest.raises(CannotRun) as caught:
        run(work(v="ab"), Graph([a_block(("a", None, None))]), dead, dead, dead)
    text = str(caught.value)
    assert text.startswith("Ray lost all of the job's work 3 times in a row: WorkerCrashedError: ")
    assert "run the same command again" in text
    assert "\n" not in text
    assert stored(job) == ["a"]


def test_a_row_that_is_lost_again_and_again_is_quarantined_and_the_others_are_made(
    run: Run, job: Job
) -> None:
    rows = {f"v{i}": "a" for i in range(6)}

    class Losing(Graph):
        def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
            try:
                raise ray.exceptions.ActorDiedError
            except ray.exceptions.ActorDiedError:
                logging.getLogger(LOGGER).error("An exception was raised", exc_info=True)
            yield from self.blocks

    made = [Losing([a_block(("a", None, None), video=f"v{i}")]) for i in range(5)]
    counts = run(work(**rows), *made)
    assert (counts.edited, counts.errors) == (5, {"rank_died": 1})
    (failure,) = counts.failures
    assert (failure.video_id, failure.edit_id) == ("v5", "a")
    assert failure.message.startswith("lost 5 times with the process or node at work on it")


def owner(stage: str = "inversion", node: str = "n", broken: str = "") -> Owner:
    return Owner(stage, node, 1, seen=0.0, broken=broken)


def test_a_job_ends_with_the_reason_when_no_group_of_a_stage_can_start(
    run: Run, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {f"{i}": owner(broken="no such file") for i in range(3)}
    monkeypatch.setattr(FakeControl, "owners", broken)
    hold = threading.Event()
    with pytest.raises(CannotRun, match="a rank group could not start: no such file"):
        run(work(v="ab"), Graph([a_block(("a", None, None))], hold=hold))
    hold.set()
    assert stored(job) == ["a"]


def test_rows_that_a_broken_group_holds_are_given_to_the_others(
    run: Run, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HAPPENED, "reconstruction ready", 1)
    where: list[Any] = []
    placement = place(job, gpu_nodes(8))
    monkeypatch.setattr(placing, "placed_on", lambda *of: where.append(of[3]) or placement)
    owners = {"0": owner(), "1": owner(node="bad", broken="no such file")}
    monkeypatch.setattr(FakeControl, "owners", owners)
    hold = threading.Event()

    def say(_: Any, word: str) -> None:
        if word == "leave":  # the group gives its row back
            FakeControl.owners.clear()
            hold.set()

    monkeypatch.setattr(FakeControl, "say", say)
    first = Graph([a_block(("a", None, None), video="u")], hold=hold)
    counts = run(work(u="a", v="b"), first, Graph([a_block(("b", None, None))]))
    assert (counts.edited, stored(job)) == (2, ["a", "b"])
    assert where == [{"bad"}], "the node of the broken group gets none"


def test_a_broken_group_does_not_end_a_wave_in_which_others_still_load(
    run: Run, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HAPPENED, "inversion ready", 1)
    monkeypatch.setattr(FakeControl, "owners", {"1": owner(node="bad", broken="no such file")})
    hold = threading.Event()
    threading.Timer(1.0, hold.set).start()
    counts = run(work(u="a"), Graph([], hold=hold), Graph([a_block(("a", None, None), video="u")]))
    assert counts.edited == 1
    assert "leave" not in FakeControl.said


def test_a_late_report_of_a_group_that_this_layout_does_not_have_ends_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeControl, "owners", {"1": owner(stage="editing", broken="no such file")})
    hold = threading.Event()
    threading.Timer(0.5, hold.set).start()
    assert run(work(v="a"), Graph([a_block(("a", None, None))], hold=hold)).edited == 1


def test_nodes_that_come_cost_no_wave_before_its_first_result(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups may take longer to load than nodes to come."""
    monkeypatch.setattr(dataflow.Growth, "more", lambda *_: 4)
    first, second = threading.Event(), threading.Event()

    class Slow(Graph):
        def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
            first.wait(1.0)
            said.extend(FakeControl.said)
            yield a_block(("a", None, None))
            second.wait(20)

    said: list[str] = []

    def say(self: Any, word: str) -> None:
        self.said.append(word)
        second.set() if word == "leave" else None

    monkeypatch.setattr(FakeControl, "say", say)
    assert run(work(v="ab"), Slow([]), Graph([a_block(("b", None, None))])).edited == 2
    assert "leave" not in said
    assert "leave" in FakeControl.said


def test_a_wave_whose_groups_have_no_place_any_more_ends_the_job(
    run: Run, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "BACK_S", 0.3)
    hold = threading.Event()
    first = Graph([a_block(("a", None, None))], hold=hold)
    with pytest.raises(CannotRun, match="nodes of the job's groups have left, and none has come"):
        run(work(v="ab"), first)
    hold.set()
    assert stored(job) == ["a"]


def test_rows_that_only_broken_groups_get_end_the_job_with_their_reason(
    run: Run, graphs: list[pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HAPPENED, "reconstruction ready", 1)
    monkeypatch.setattr(FakeControl, "owners", {"1": owner(broken="no such file")})
    held = [Graph([], hold=threading.Event()) for _ in range(3)]

    def say(_: Any, word: str) -> None:
        if word == "leave":
            held[len(graphs) - 1].hold.set()  # type: ignore[union-attr]

    monkeypatch.setattr(FakeControl, "say", say)
    with pytest.raises(CannotRun, match="a rank group could not start: no such file"):
        run(work(u="a"), *held)


def test_a_manifest_that_cannot_be_read_on_ends_the_job_and_what_is_done_is_stored(
    run: Run, job: Job
) -> None:
    def damaged() -> Iterator[Checked]:
        yield Checked(WORK.empty_table(), a_block(("a", "bad_uri", "no")))
        raise Unreadable("manifest m.parquet: its rows cannot be read")

    class Damaged(Given):
        def __iter__(self) -> Iterator[Checked]:
            return damaged()

    with pytest.raises(Unreadable, match=r"manifest m\.parquet: its rows cannot be read"):
        run(NONE, pending=Damaged())
    assert stored(job) == ["a"]


def test_a_manifest_that_cannot_be_read_on_while_a_wave_runs_ends_the_job_too(
    run: Run, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the run would end as if it were done."""
    hold = threading.Event()

    class Damaged(Given):
        def __iter__(self) -> Iterator[Checked]:
            yield Checked(work(v="a"), NONE)
            hold.wait(20)  # until the wave has begun
            raise Unreadable("manifest m.parquet: its rows cannot be read")

    class Slow(Graph):
        def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
            yield a_block(("a", None, None))
            hold.set()
            time.sleep(0.5)

    monkeypatch.setattr(waves, "GATHER_S", 0.0)
    with pytest.raises(Unreadable, match=r"manifest m\.parquet: its rows cannot be read"):
        run(NONE, Slow([]), pending=Damaged())
    assert stored(job) == ["a"]


def test_waves_that_ray_ends_again_and_again_cost_no_row(
    run: Run, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each brings something, so none of their many rows is known to be the reason."""
    ended = ray.exceptions.ObjectLostError("o", None, "c")
    blocks = [[a_block(("a", None, None), video=f"v{i}")] for i in range(8)]
    counts = run(work(**{f"v{i}": "a" for i in range(8)}), *(Graph(b, ended) for b in blocks))
    assert (counts.edited, counts.failed) == (8, 0)


def test_nodes_that_all_left_are_waited_for_in_a_cluster_and_cpus_are_no_gpus(
    run: Run, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def placed(job: Job, *_: Any) -> Any:
        asked.append(job.cluster.device)
        return place(job, gpu_nodes(8 if len(asked) == 3 else 0))

    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(placing, "placed_on", placed)
    shown: list[Counts] = []
    gone = ray.exceptions.ActorDiedError()
    first = Graph([a_block(("a", None, None))], gone)
    counts = run(work(v="ab"), first, Graph([a_block(("b", None, None))]), shown=shown)
    assert (counts.edited, asked) == (2, ["gpu"] * 3)
    notes = {note for one in shown for note in one.notes if "Nodes are waited for, 600 s" in note}
    assert len(notes) == 1
    assert not notes & set(shown[0].notes)


def test_nodes_are_not_waited_for_where_none_can_come(
    run: Run, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray that the run started on its machine does not come back."""

    def placed(*_: Any) -> Any:
        raise CannotRun("Ray has no node")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(placing, "placed_on", placed)
    with pytest.raises(CannotRun, match="Ray has no node"):
        run(work(v="ab"), Graph([a_block(("a", None, None))]))
    assert stored(job) == ["a"]


def test_a_run_that_is_asked_to_stop_lets_work_end_for_its_grace_and_stores_it(
    run: Run, job: Job
) -> None:
    stop, hold = threading.Event(), threading.Event()

    class Slow(Graph):
        def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
            stop.set()
            yield a_block(("a", None, None))
            hold.wait(20)

    began = time.monotonic()
    counts = run(work(v="ab"), Slow([]), stop=stop)
    assert (counts.edited, stored(job)) == (1, ["a"])
    assert time.monotonic() - began >= job.cluster.stop_grace_s
    assert FakeControl.said == ["begin", "leave"]
    hold.set()


def test_a_stop_before_a_wave_has_begun_is_in_the_log_of_the_run(
    run: Run, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()

    def prepare(*of: Any) -> Prepared:
        stop.set()
        of[3]()  # it waits for the encoder, and hears that there is no time
        return Prepared()

    monkeypatch.setattr(dataflow.first_prompts, "prepare", prepare)
    assert run(work(v="a"), stop=stop).edited == 0
    output = Folder(job.editing.output)
    names = [name for name in output.list("logs") if "/driver-" in name]
    events = [event.event for event in read_segments(output, names)]
    assert events[-4:] == ["wave ended", "stop asked", "stop done", "run ended"]


def test_a_run_that_lost_its_folder_to_another_ends(run: Run, job: Job) -> None:
    class Lost:
        def check(self) -> None:
            raise CannotRun("another run has taken the folder over")

    with pytest.raises(CannotRun, match="another run"):
        run(work(v="a"), Graph([]), lease=Lost())
    assert stored(job) == []


def test_results_are_stored_whatever_happens_to_those_who_watch(run: Run, job: Job) -> None:
    class Watcher(list[Counts]):
        def append(self, counts: Counts) -> None:
            if counts.edited:
                raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        run(work(v="a"), Graph([a_block(("a", None, None))]), shown=Watcher())
    assert stored(job) == ["a"]


def test_while_storage_takes_no_results_no_work_begins(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What groups make then is lost with their tries: they write to the same storage."""

    def note(_: Any) -> str | None:
        return None if "wait" in FakeControl.said else "results cannot be stored"

    monkeypatch.setattr(dataflow.ResultWriter, "note", property(note))
    hold = threading.Event()
    threading.Timer(1.5, hold.set).start()
    assert run(work(v="a"), Graph([a_block(("a", None, None))], hold=hold)).edited == 1
    assert FakeControl.said == ["begin", "wait", "go"]


def test_later_waves_are_as_large_as_the_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs all groups a start, and waits for its last video."""
    sized: list[int] = []
    real = dataflow.most_rows
    monkeypatch.setattr(dataflow, "most_rows", lambda groups: sized.append(groups) or real(groups))
    gone = ray.exceptions.ActorDiedError()
    first = Graph([a_block(("a", None, None))], gone)
    assert run(work(v="ab"), first, Graph([a_block(("b", None, None))])).edited == 2
    assert set(sized) == {4}, "3 groups that invert, and 1 that reconstructs"
