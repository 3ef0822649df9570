"""A job on a cluster of several nodes, which come and go."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobs.cli import app
from tests.faults.campaign import Campaign, Moment
from tests.faults.checks import unfinished
from tests.faults.record import Log
from tests.faults.scene.processes import process
from tests.faults.scene.stage import Setting, staged

THREE_NODES = Setting("local", workers=3, layout="pair", videos=12, edits=3, steps=40)
ONE_NODE = Setting("local", workers=1, layout="auto", videos=24, edits=3, steps=60)

SPOT = Setting("local", workers=3, layout="auto", videos=60, edits=3, steps=40)


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.distributed
@pytest.mark.timeout(580)
def test_a_node_lost_while_it_inverts_and_one_while_it_edits_cost_no_edit(tmp_path: Path) -> None:
    moments = [
        Moment("node that inverts killed", edits=0, then_s=0, lasts_s=1, file="attempts/"),
        Moment("node that edits killed", edits=6, then_s=0, lasts_s=1),
    ]
    log = Log(tmp_path / "events.jsonl")
    with staged(THREE_NODES, 1, log) as campaign:
        problems = campaign.go(moments)
    print("\n".join(map(str, log.events())))
    assert not problems
    assert [event["event"] for event in log.events()].count("recovered") == 2


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.timeout(580)
def test_a_node_that_comes_while_a_job_runs_gets_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.driver import nodes

    for name, seconds in (("LOOK_S", 0.5), ("SETTLED_S", 1.0), ("BETWEEN_S", 5.0)):
        monkeypatch.setattr(nodes, name, seconds)
    with staged(ONE_NODE, 1, Log(tmp_path / "events.jsonl")) as campaign:
        for name, value in campaign.environment.items():
            monkeypatch.setenv(name, value)
        used = threading.Event()
        thread = threading.Thread(target=_add_a_node, args=(campaign, used), daemon=True)
        thread.start()
        assert app(["run", str(campaign.dataset.job)], standalone_mode=False) == 0
        assert used.is_set()
        assert not unfinished(campaign.place, campaign.dataset)


def _add_a_node(campaign: Campaign, used: threading.Event) -> None:
    """Add one once there is an edit, and see whether it gets a rank."""
    family, nodes = campaign.scene.family, campaign.scene.nodes
    assert nodes
    pause = threading.Event()
    while not any(name.endswith(".mp4") for name in campaign.place.versions()):
        pause.wait(0.2)
    raylet = process(nodes.add())
    assert raylet
    while not any(one.role == "rank" for one in family.below(raylet)):
        pause.wait(0.2)
    used.set()


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_group_larger_than_any_node_is_refused_though_the_cluster_has_the_cpus(
    tmp_path: Path,
) -> None:
    setting = Setting("local", workers=2, layout="auto", videos=1, edits=1, steps=3)
    large = {"reconstruction": {"groups": 1, "gpus": 5, "ring": 5}}
    with staged(setting, 1, Log(tmp_path / "events.jsonl"), **large) as campaign:
        done = subprocess.run(
            [sys.executable, "-m", "jobs.cli", "run", str(campaign.dataset.job)],
            env=campaign.environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "5 CPU" in done.stderr, done.stderr


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.distributed
@pytest.mark.timeout(580)
def test_nodes_that_come_and_go_for_a_minute_cost_no_edit(tmp_path: Path) -> None:
    """As spot machines do: some are lost, some leave in order, and others come."""
    log, draw = Log(tmp_path / "events.jsonl"), random.Random(3)
    edits = SPOT.videos * SPOT.edits
    kinds = ("node killed", "node left and came") * 4
    moments = [
        Moment(kind, int(number * 0.8 * edits / len(kinds)), draw.uniform(0, 3), draw.uniform(1, 8))
        for number, kind in enumerate(kinds)
    ]
    with staged(SPOT, 3, log) as campaign:
        problems = campaign.go(moments)
    events = log.events()
    print("\n".join(map(str, events)))
    assert not problems
    faults = [event["at_s"] for event in events if event["event"] == "fault"]
    assert len(faults) == len(kinds)
    assert faults[-1] - faults[0] >= 60
    assert [event["event"] for event in events].count("recovered") == len(kinds)
