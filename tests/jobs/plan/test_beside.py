"""The plan of a run, made beside its start."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.estimate.record import JobPlan
from cluster.layout.placement import Node, gpu_kinds
from jobs.plan import beside
from jobs.plan.beside import PlanBeside, known_rate
from jobs.plan.count import Abandoned
from jobs.prepare import Prepared, prepare
from jobs.spec import load_job
from jobs.trial import Part, pending_rows
from tests.jobs.plan.test_plan import a_job


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(load_job(str(a_job(tmp_path, family=None, videos=3))), write=False)


def plan_of(prepared: Prepared, gpus: dict[str, int], part: Part | None = None) -> JobPlan | None:
    with PlanBeside() as one:
        one.begin(prepared, pending_rows(prepared, part))
        return one.plan(gpus)


def test_it_is_of_what_the_run_takes(prepared: Prepared) -> None:
    plan = plan_of(prepared, {"H100": 2}, Part(limit=2))
    assert plan is not None
    assert (plan.videos, plan.edits, plan.prompts) == (2, 8, 5)
    (kind,) = plan.kinds
    assert (kind.gpu.name, kind.gpus) == ("H100", 2)


@pytest.mark.parametrize("gpus", [{}, {"H100": 2, "L4": 2}, {"": 4}, {"MI300": 4}])
def test_it_has_no_hours_where_the_nodes_name_no_kind_that_is_known(
    prepared: Prepared, gpus: dict[str, int]
) -> None:
    plan = plan_of(prepared, gpus)
    assert plan is not None
    assert (plan.edits, plan.kinds) == (12, ())


def test_what_goes_wrong_costs_the_plan_alone(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr(beside, "estimate", fails)
    assert plan_of(prepared, {}) is None
    monkeypatch.setattr(beside, "count", fails)
    assert plan_of(prepared, {}) is None
    with PlanBeside() as without_a_beginning:
        assert without_a_beginning.plan({}) is None


def test_a_run_that_ends_before_the_count_does_not_wait_for_it(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def endless(files: object, wanted: object, go_on: Callable[[], bool]) -> None:
        while go_on():
            time.sleep(0.01)
        seen.append(True)
        raise Abandoned

    monkeypatch.setattr(beside, "count", endless)
    with PlanBeside() as one:
        one.begin(prepared, pending_rows(prepared))
    assert seen == [True]


def test_a_count_that_storage_holds_up_does_not_hold_the_run(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(beside, "count", lambda *_: answers.wait(60))
    monkeypatch.setattr(beside, "LEAVE_S", 0.01)
    with PlanBeside() as one:
        one.begin(prepared, pending_rows(prepared))
    assert one._thread is not None
    assert one._thread.is_alive(), "it was left behind"
    answers.set()
    one._thread.join()


@pytest.mark.parametrize(
    ("kind", "name"),
    [("H100", "H100"), ("A100", "A100-80GB"), ("A100-40G", "A100-40GB"), ("A10G", "A10G")],
)
def test_kinds_are_known_by_the_names_that_ray_gives_them(kind: str, name: str) -> None:
    rate = known_rate(kind)
    assert rate is not None
    assert rate.name == name


def test_the_nodes_say_which_gpus_they_have() -> None:
    h100 = {"GPU": 8.0, "CPU": 64.0, "accelerator_type:H100": 1.0}
    nodes = [
        Node("a", h100, h100),
        Node("b", h100, {"CPU": 1.0}),
        Node("c", {"GPU": 2.0}, {}),
        Node("d", {"CPU": 8.0}, {}),
    ]
    assert gpu_kinds(nodes) == {"H100": 16, "": 2}
