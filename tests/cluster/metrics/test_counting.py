"""What the driver and the owners of groups count, and that counting ends no run and costs little.

Ray's metrics are the real ones here, which take numbers without a cluster; what of them arrives is
in `test_scrape.py`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pyarrow as pa
import pytest

from cluster.metrics import declared, group, recorder
from cluster.metrics.declared import METRICS, Metric
from cluster.metrics.group import AtWork, GroupMetrics
from cluster.metrics.recorder import Recorder
from cluster.metrics.run import RunMetrics
from cluster.progress import Counts, Groups
from cluster.results.schema import SCHEMA

Key = tuple[Metric, tuple[tuple[str, str], ...]]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[Key, float]:
    """What was recorded: the sum of a counter, the last value of a gauge."""
    values: dict[Key, float] = {}

    def record(_: Recorder, metric: Metric, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(metric.tags)
        key = (metric, tuple(tags.items()))
        values[key] = value + (values.get(key, 0.0) if metric.kind == "counter" else 0.0)

    monkeypatch.setattr(Recorder, "_record", record)
    return values


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


def results(*rows: dict[str, Any]) -> pa.Table:
    plain = {"status": "ok", "attempts": 1, "gpu_seconds": 0.0}
    return pa.Table.from_pylist([plain | row for row in rows], schema=SCHEMA)


PART = dict.fromkeys(declared.PARTS, 0.0)


def test_names_are_those_that_prometheus_takes_and_no_two_are_alike() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("retake_") and metric.name.islower()
        assert not metric.name.endswith("_total")
        assert metric.text and not metric.text.endswith(".")
        assert metric.exported == f"ray_{metric.name}" + "_total" * (metric.kind == "counter")


def test_results_are_counted_by_status_and_code_with_what_they_took(
    recorded: dict[Key, float],
) -> None:
    metrics = RunMetrics("r", 9)
    ok = {"size_bytes": 700, "attempts": 3, "gpu_seconds": 2.5, "timings": PART | {"read": 0.5}}
    metrics.results(results(ok, ok, {"status": "failed", "error_code": "out_of_memory"}))
    dead = {"status": "quarantined", "error_code": "rank_died", "attempts": 2}
    metrics.results(results(dead, {"status": "failed", "error_code": "no_edits", "attempts": 0}))
    edits = {tags: value for (metric, tags), value in recorded.items() if metric is declared.EDITS}
    assert {tuple(value for _, value in tags): many for tags, many in edits.items()} == {
        ("ok", "none"): 2,
        ("failed", "out_of_memory"): 1,
        ("quarantined", "rank_died"): 1,
        ("failed", "no_edits"): 1,
    }
    assert recorded[declared.RETRIES, ()] == 5
    assert recorded[declared.BYTES, ()] == 1400
    assert recorded[declared.GPU_SECONDS, ()] == 5
    assert recorded[declared.PART_SECONDS, (("part", "read"),)] == 1
    assert recorded[declared.PART_SECONDS, (("part", "write"),)] == 0


def test_the_queues_and_the_groups_are_what_the_last_tick_said(
    recorded: dict[Key, float], clock: Callable[[float], None]
) -> None:
    metrics = RunMetrics("r", 100)
    waiting = set(range(30))
    metrics.begin(waiting)
    groups = (Groups("editing", 1, 4),)
    metrics.tick(Counts(edited=2, failed=3, groups=groups), 7, "a note")
    assert {
        tags[0][1]: value for (metric, tags), value in recorded.items() if metric is declared.QUEUE
    } == {"manifest": 65, "wave": 30, "results": 7}
    assert recorded[declared.TROUBLE, ()] == 1
    assert recorded[declared.READY, (("stage", "editing"),)] == 1
    assert recorded[declared.GROUPS, (("stage", "editing"),)] == 4
    waiting.clear()
    clock(0.5)
    metrics.tick(Counts(edited=90, failed=10, groups=groups), 0, None)
    assert recorded[declared.QUEUE, (("queue", "wave"),)] == 30  # once a second is enough
    clock(0.6)
    metrics.tick(Counts(edited=90, failed=10, groups=groups), 0, None)
    assert recorded[declared.QUEUE, (("queue", "wave"),)] == 0
    assert recorded[declared.QUEUE, (("queue", "manifest"),)] == 0
    assert recorded[declared.TROUBLE, ()] == 0


def test_what_is_unknown_for_a_while_takes_no_counter_back(recorded: dict[Key, float]) -> None:
    metrics = RunMetrics("r", 100)
    for inverted, prompts in ((3, 5), (0, 0), (2, 4), (4, 8)):
        metrics.tick(Counts(inverted=inverted, prompts=prompts), 0, None)
    assert recorded[declared.VIDEOS, ()] == 4
    assert recorded[declared.PROMPTS, ()] == 8


def test_two_requests_at_once_are_one_time_at_work(clock: Callable[[float], None]) -> None:
    work = AtWork()
    clock(10)
    with work:
        clock(1)
        with work:
            clock(2)
        assert work.taken() == (13, 3)  # also while a request goes on
        clock(4)
    clock(5)
    assert work.taken() == (9, 4)
    assert work.taken() == (0, 0)


class Ranks:
    """A group that was started so often."""

    starts = 1


def test_a_group_counts_its_seconds_its_gpus_and_its_restarts(
    recorded: dict[Key, float], clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda _: None)
    ranks = Ranks()
    metrics = GroupMetrics("r", "editing", ranks, gpus=4)
    assert set(recorded.values()) == {0}  # a series begins at 0
    stage = (("stage", "editing"),)
    with metrics.at_work():
        clock(3)
    assert recorded[declared.BUSY_SECONDS, stage] == 3  # at once: its process may end now
    clock(7)
    metrics.count()
    ranks.starts = 3
    metrics.count()
    metrics.count()
    assert recorded[declared.GROUP_SECONDS, stage] == 10
    assert recorded[declared.BUSY_SECONDS, stage] == 3
    assert recorded[declared.RESERVED, stage] == 40
    assert recorded[declared.RESTARTS, stage] == 2


def test_the_thread_of_a_group_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "EVERY_S", 0.01)
    before = set(threading.enumerate())
    metrics = GroupMetrics("r", "editing", Ranks(), gpus=0)
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon
    del metrics
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def in_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Ray is connected."""
    monkeypatch.setattr(recorder, "_in_ray", lambda: True)


def test_numbers_that_no_counter_takes_are_left_out_and_others_go_on(
    in_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[float] = []

    class OfRay:
        def _record(self, value: float, tags: dict[str, str]) -> None:
            assert tags == {"run": "r"}
            taken.append(value)

    monkeypatch.setattr(recorder, "_of_ray", lambda _: OfRay())
    record = Recorder("r")
    for value in (float("nan"), float("inf"), -1.0, 0, 2.5):
        record.add(declared.WAVES, value)
    assert taken == [0, 2.5]


def test_a_ray_that_takes_no_metrics_is_asked_once_and_the_run_goes_on(
    in_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Metric] = []

    def refuses(metric: Metric) -> Any:
        asked.append(metric)
        raise AttributeError("no such thing in this Ray")

    monkeypatch.setattr(recorder, "_of_ray", refuses)
    metrics = RunMetrics("r", 1)
    metrics.begin(set())
    metrics.results(results({}))
    metrics.tick(Counts(), 0, None)
    assert len(asked) == 1


def test_a_group_that_cannot_be_counted_fails_no_row() -> None:
    with GroupMetrics("r", "editing", cast(Any, object()), gpus=0).at_work():
        answered = True
    assert answered


def test_results_without_a_column_end_no_run() -> None:
    RunMetrics("r", 1).results(pa.table({"status": ["ok"]}))


def test_without_ray_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(recorder.sys.modules, "ray", raising=False)
    monkeypatch.setattr(recorder, "_of_ray", lambda _: pytest.fail("there is no Ray"))
    RunMetrics("r", 1).results(results({}))


def test_a_row_costs_the_driver_less_than_a_fifth_of_a_millisecond(in_ray: None) -> None:
    metrics = RunMetrics("test_counting", 100)
    row = {"size_bytes": 700, "gpu_seconds": 2.5, "timings": PART | {"read": 0.5}}
    table = results(row)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(20):
            metrics.results(table)
        best = min(best, (time.perf_counter() - began) / 20)
    assert best < 0.2e-3
    assert not metrics._record._off
