"""Waiting for the nodes of a job."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.deploy.clouds import nodes


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


HEAD = node(memory=1.0)


def test_nodes_that_come_one_after_the_other_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nodes, "EVERY_S", 0.0)
    large, small = node(CPU=8, GPU=4), node(CPU=8, GPU=1)
    seen = iter([[HEAD], [HEAD, large, small], [HEAD, large, node(False, GPU=4), large]])
    assert nodes.wait_for(2, 4, 60, lambda: next(seen))
    assert "waiting: 0 of 2 with 4 GPUs each" in capsys.readouterr().out


def test_without_gpus_a_node_counts_that_has_cores() -> None:
    assert nodes.wait_for(1, 0, 0, lambda: [HEAD, node(CPU=2)])
    assert not nodes.wait_for(2, 0, 0, lambda: [HEAD, node(CPU=2)])


def test_nodes_that_do_not_come_are_a_problem_with_the_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not nodes.wait_for(2, 8, 0, lambda: [HEAD])
    assert "0 of 2 nodes with 8 GPUs each" in capsys.readouterr().err
