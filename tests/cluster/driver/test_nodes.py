"""Nodes that come and go, and owners that say nothing any more, without Ray."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.driver import control, nodes
from cluster.driver.control import ALIVE_S, ControlActor, Owner
from cluster.driver.nodes import (
    AGAIN_S,
    BETWEEN_S,
    LOOK_S,
    SETTLED_S,
    SILENT_S,
    Growth,
    LeftOut,
    end_silent,
)
from cluster.layout.placement import Node, place
from cluster.layout.work import Amount
from tests.small_jobs import a_job

A, B = "a" * 56, "b" * 56
"""Ids of nodes, as long as Ray's."""
MUCH = Amount(1000, 4000)


def a_node(name: str, free: float, gpus: float = 4.0) -> Node:
    return Node(name, {"CPU": 8.0, "GPU": gpus}, {"CPU": 8.0, "GPU": free}, name)


def growth(*now: Node, before: tuple[Node, ...] = (a_node("a", 4.0),), **cluster: Any) -> Growth:
    """Of a run on the nodes `before`, of which these are there now."""
    job = a_job(**cluster)
    return Growth(job, place(job, before, MUCH), before, lambda: now, began=0.0, asked=0.0)


def gained(found: Growth, amount: Amount = MUCH) -> int:
    """What is known when it has been looked at for long enough."""
    assert found.more(BETWEEN_S - 1, amount) == 0, "groups load for each wave"
    assert found.more(BETWEEN_S, amount) == 0, "others may come"
    return found.more(BETWEEN_S + max(SETTLED_S, LOOK_S), amount)


def test_nodes_that_came_are_worth_a_wave_for_the_groups_that_they_hold() -> None:
    """The run's own reservations do not count as taken, nor does what it left free."""
    assert gained(growth(a_node("a", 0.0), a_node("b", 4.0))) == 4
    assert gained(growth(a_node("a", 0.0), a_node("b", 4.0), a_node("c", 1.0))) == 5


@pytest.mark.parametrize(
    ("now", "why"),
    [
        ([a_node("a", 0.0)], "nothing came"),
        ([a_node("a", 0.0), a_node("b", 0.0)], "another job has the new node"),
        ([a_node("b", 4.0)], "it stands for one that left"),
        ([], "all left"),
    ],
)
def test_other_changes_are_worth_none(now: list[Node], why: str) -> None:
    assert gained(growth(*now)) == 0, why


def test_groups_that_are_set_or_have_nothing_to_do_do_not_grow() -> None:
    both = a_node("a", 0.0), a_node("b", 4.0)
    fixed = a_job().cluster.reconstruction
    assert gained(growth(*both, reconstruction=replace(fixed, groups=2))) == 0
    assert gained(growth(*both, before=(a_node("a", 4.0),)), Amount(2, 2)) == 0


def test_nodes_that_still_come_are_waited_for() -> None:
    come = [a_node("a", 0.0)]
    found = growth()
    found.look = lambda: list(come)
    times = [BETWEEN_S + LOOK_S * number for number in range(8)]
    more = []
    for number, now in enumerate(times):
        if number < 4:
            come.append(a_node(f"n{number}", 4.0))
        more.append(found.more(now, MUCH))
    settled = 3 + int(SETTLED_S / LOOK_S)
    assert more == [0] * settled + [16] * (len(times) - settled)


def test_a_head_that_does_not_answer_changes_nothing() -> None:
    def look() -> list[Node]:
        raise ConnectionError

    found = growth()
    found.look = look
    assert gained(found) == 0


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Node and process id of those that a task kills."""
    found: list[tuple[str, int]] = []

    def options(scheduling_strategy: Any) -> Any:
        node = scheduling_strategy.node_id
        return SimpleNamespace(remote=lambda pid: found.append((node, pid)))

    monkeypatch.setattr(nodes, "kill", SimpleNamespace(options=options))
    return found


def test_an_owner_that_says_nothing_for_long_is_killed_once_on_its_node(
    killed: list[tuple[str, int]],
) -> None:
    owners = [Owner("editing", A, 1, seen=100.0), Owner("editing", B, 2, seen=219.0)]
    ended: set[tuple[str, int]] = set()
    for now in (219.0, 220.0, 221.0):
        ended.update(end_silent(owners, now, ended))
    assert SILENT_S == 120.0
    assert killed == [(A, 1)], "until it is started again it stands there as before"


def test_owners_are_not_silent_where_nobody_listened(
    monkeypatch: pytest.MonkeyPatch, killed: list[tuple[str, int]]
) -> None:
    """The actor that hears them, or the whole machine, may be stopped for minutes."""
    clock = [0.0]
    monkeypatch.setattr(control.time, "monotonic", lambda: clock[0])
    actor = ControlActor()
    for _ in range(3):
        clock[0] += ALIVE_S
        actor.here(1, "one", "editing", A, 1, "")
        actor.here(1, "stopped", "editing", B, 2, "") if clock[0] == ALIVE_S else None
    clock[0] += 10 * SILENT_S
    state = actor.state()
    assert end_silent(state.owners.values(), state.now) == []
    for _ in range(int(SILENT_S / ALIVE_S)):
        clock[0] += ALIVE_S
        actor.here(1, "one", "editing", A, 1, "")
    state = actor.state()
    assert end_silent(state.owners.values(), state.now) == [(B, 2)] == killed


def test_a_node_whose_groups_broke_is_back_later_and_later() -> None:
    now = [0.0]
    out = LeftOut(lambda: now[0])
    gone = []
    for _ in range(3):
        out.add([A])
        began = now[0]
        while out.now():
            assert out.now() == {A}
            now[0] += 60.0
        gone.append(now[0] - began)
    assert gone == [AGAIN_S, 2 * AGAIN_S, 4 * AGAIN_S]
    out.add([A, B])
    out.forget()
    assert not out.now()


def test_groups_do_not_grow_by_a_node_that_is_left_out() -> None:
    """Each wave would end for it after minutes, and the next one would not use it either."""
    found = growth(a_node("a", 0.0), a_node("b", 4.0))
    now = [0.0]
    found.left_out = LeftOut(lambda: now[0])
    found.left_out.add(["b"])
    assert gained(found) == 0
    now[0] = AGAIN_S
    found.asked = found.began
    assert gained(found) == 4


def test_a_group_whose_owner_is_started_again_is_not_ready_until_it_has_loaded_anew() -> None:
    """Else one that restarts would count twice, and stand for another that still loads."""
    actor = ControlActor()
    for owner, node, pid in (("one", A, 1), ("two", B, 2)):
        actor.here(1, owner, "editing", node, pid)
    actor.add(1, "editing ready", 1, "one")
    actor.here(1, "one", "editing", A, 1)
    assert actor.state().events["editing ready"] == 1
    actor.here(1, "one", "editing", B, 3)
    assert actor.state().events["editing ready"] == 0
    actor.add(1, "editing ready", 1, "one")
    assert actor.state().events["editing ready"] == 1, "the other one still loads"
    actor.add(1, "editing ready", 1, "two")
    assert actor.state().events["editing ready"] == 2


def test_what_owners_of_a_wave_that_ended_say_changes_nothing_in_the_next() -> None:
    """Ray ends them some time after: they say that they are broken every few seconds."""
    actor = ControlActor()
    actor.say(1, "go")
    actor.here(1, "old", "editing", A, 1, "no such file")
    actor.add(1, "editing ready", 1)
    actor.add(1, "video inverted", 2)
    actor.say(2, "go")
    actor.here(1, "old", "editing", A, 1, "no such file")
    actor.add(1, "editing ready", 1)
    actor.add(1, "video inverted", 1)
    actor.here(2, "new", "editing", B, 2, "")
    state = actor.state()
    assert set(state.owners) == {"new"}
    assert state.events == {"video inverted": 3}
    assert (actor.heard(1), actor.heard(2)) == ("leave", "go")
    actor.say(1, "wait")
    assert actor.heard(2) == "go"
