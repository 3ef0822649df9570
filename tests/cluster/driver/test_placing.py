"""Where a wave goes after the first, without Ray."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from cluster.driver import placing
from cluster.driver.control import Owner
from cluster.driver.placing import BACK_S, ENDED_S, FREED_S, LOOK_S, Placing
from cluster.job import CannotRun
from cluster.layout.placement import Node
from cluster.layout.work import Amount
from tests.small_jobs import a_job

OWNER = Owner("editing", "a", 7, seen=0.0)


def a_node(name: str, free: float) -> Node:
    return Node(name, {"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": free}, name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited, which pass as they are slept."""
    now = [0.0]
    # Of this module alone: threads of other tests sleep, too.
    clock = SimpleNamespace(
        monotonic=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s)
    )
    monkeypatch.setattr(placing, "time", clock)
    return now


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> list[float]:
    """When owners of the wave before were killed."""
    at: list[float] = []
    monkeypatch.setattr(placing, "end", lambda owners: at.extend(clock[0] for _ in owners))
    return at


def on(monkeypatch: pytest.MonkeyPatch, *nodes: Node) -> Placing:
    monkeypatch.setattr(placing, "alive_nodes", lambda: nodes)
    return Placing(a_job(), Amount(100, 400), [a_node("a", 4.0)])


@pytest.mark.parametrize(
    ("nodes", "waits_s"),
    [
        ([a_node("a", 4.0)], 0.0),
        ([a_node("a", 4.0), a_node("b", 0.0)], 0.0),  # another job's
        ([a_node("b", 2.0)], 0.0),  # the first has left
        ([a_node("a", 3.0)], FREED_S),
    ],
)
def test_what_the_wave_before_reserved_is_waited_for_and_nothing_else(
    nodes: list[Node],
    waits_s: float,
    monkeypatch: pytest.MonkeyPatch,
    clock: list[float],
    killed: list[float],
) -> None:
    found = on(monkeypatch, *nodes).again([OWNER], lambda _: True)
    assert found is not None
    assert waits_s <= clock[0] <= waits_s + 2 * LOOK_S
    expected = [pytest.approx(ENDED_S, abs=2 * LOOK_S)] if waits_s else []
    assert killed == expected, "an owner that loads for minutes would hold its place"


def test_a_run_that_is_stopped_waits_for_no_place(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    assert on(monkeypatch, a_node("a", 0.0)).again([], lambda _: clock[0] < 1.0) is None


def test_nodes_that_left_are_waited_for_with_the_reason_and_not_without_end(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    said = set[str]()
    with pytest.raises(CannotRun):
        on(monkeypatch).again([], lambda why: said.add(why) or True)  # type: ignore[func-returns-value]
    assert clock[0] == pytest.approx(BACK_S, abs=2 * LOOK_S)
    assert len(said) == 1
    assert "Nodes are waited for, 600 s at most" in said.pop()


def test_nodes_that_were_left_out_are_back_where_the_others_have_no_room(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    found = on(monkeypatch, a_node("a", 4.0), replace(a_node("b", 4.0), has={}, free={}))
    found.left_out.add(["a"])
    placement = found.again([], lambda _: True)
    assert placement is not None
    assert placement.without == ()


def test_a_placement_holds_while_the_nodes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    before = on(monkeypatch, a_node("a", 4.0))
    placement = before.again([], lambda _: True)
    assert placement is not None
    assert before.still_holds(placement) is placement
    assert on(monkeypatch, a_node("b", 4.0)).still_holds(placement) is None
