"""Two runs of one job at once, and one that is started again where another machine had it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Literal

import pytest

from tests.faults.checks import committed, damaged, left_behind, made_again, result_rows, unfinished
from tests.faults.record import Log
from tests.faults.scene.runs import start_run
from tests.faults.scene.stage import Setting, staged
from tests.faults.scene.watched import watched_video

ONE_GROUP = {"reconstruction": {"groups": 1, "gpus": 1}}
GATE_S = 200.0


class Gate:
    """Holds up who reads a video, until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, port: int) -> None:
        self.reached.set()
        self.opened.wait(GATE_S)


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.timeout(580)
@pytest.mark.parametrize("storage", ["local", pytest.param("s3", marks=pytest.mark.soak)])
def test_a_second_run_is_refused_or_waits_and_each_edit_is_made_once(
    tmp_path: Path, storage: Literal["local", "s3"]
) -> None:
    gate = Gate()
    with watched_video(tmp_path, gate) as uri:
        setting = Setting(storage, 0, "shared", videos=1, edits=1, steps=3, elsewhere={"gate": uri})
        with staged(setting, 1, Log(tmp_path / "events.jsonl"), **ONE_GROUP) as campaign:
            dataset, place, variables = campaign.dataset, campaign.place, campaign.environment
            first = start_run(dataset, tmp_path / "first.log", variables)
            assert gate.reached.wait(GATE_S), first.text
            second = start_run(dataset, tmp_path / "second.log", variables)
            waits = start_run(dataset, tmp_path / "waits.log", variables, "--wait")
            second.ends_with(1)
            assert f"error: output {place.uri}: `retake run` 2" in second.text
            assert f"(pid {first.process.pid}, " in second.text
            waits.says("waiting for `retake run` 2")
            assert not first.ended
            gate.opened.set()
            first.ends_with(0)
            before = committed(place)
            waits.ends_with(0)
            assert "nothing is pending" in waits.text
            assert not made_again(before, committed(place))
            assert not unfinished(place, dataset)
            assert len({row["run"] for row in result_rows(place)}) == 1
            assert not damaged(place)
            assert not left_behind(
                campaign.scene.family, campaign.folder, campaign.shared_memory, own_cluster=True
            )


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.timeout(580)
def test_a_killed_run_is_gone_on_with_by_another_machine_and_nothing_is_made_again(
    tmp_path: Path,
) -> None:
    """As KubeRay tries a job again: in another pod, as soon as the driver's one is gone."""
    gate = Gate()
    with watched_video(tmp_path, gate) as uri:
        there = {"gate": uri}
        setting = Setting("local", 0, "shared", videos=2, edits=2, steps=3, elsewhere=there)
        with staged(setting, 1, Log(tmp_path / "events.jsonl"), **ONE_GROUP) as campaign:
            dataset, place, variables = campaign.dataset, campaign.place, campaign.environment
            killed = start_run(dataset, tmp_path / "killed.log", variables)
            assert gate.reached.wait(GATE_S), killed.text
            until = time.monotonic() + GATE_S
            while len(committed(place)) < 4:
                assert not killed.ended and time.monotonic() < until, killed.text
                time.sleep(0.2)
            killed.process.kill()
            killed.process.wait()
            gate.opened.set()
            before = committed(place)
            lease = campaign.folder / "out/lease/000001.json"
            lease.write_text(json.dumps({**json.loads(lease.read_bytes()), "host": "pod-1"}))

            refused = start_run(dataset, tmp_path / "refused.log", variables)
            refused.ends_with(1)
            assert f"on pod-1 (pid {killed.process.pid}, " in refused.text
            assert "Give --wait to begin when it has ended" in refused.text

            next_one = start_run(dataset, tmp_path / "next.log", variables, "--wait")
            next_one.ends_with(0)
            assert "this run takes the output folder over" in next_one.text
            assert not made_again(before, committed(place))
            assert not unfinished(place, dataset)
            assert not damaged(place)
            assert not left_behind(
                campaign.scene.family, campaign.folder, campaign.shared_memory, own_cluster=True
            )
