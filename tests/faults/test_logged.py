"""A rank that is killed in a real run: the log of the run tells all of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.checks import result_rows
from tests.faults.record import Log
from tests.faults.scene.processes import Family
from tests.faults.scene.runs import ROOT, start_run
from tests.faults.scene.stage import Setting, staged
from tests.faults.scene.watched import watched_video
from tests.run import python_path

AT_THE_END = ["rank ended", "group ended"]


class Killer:
    """Kills the rank that reads a video."""

    family: Family | None = None

    def __call__(self, port: int) -> None:
        rank = self.family.with_port(port) if self.family else None
        if rank and rank.role == "rank":
            os.kill(rank.pid, signal.SIGKILL)


def retake_logs(*arguments: str) -> str:
    """What `retake logs` prints in a process that has neither torch nor Ray."""
    program = (
        "import sys; sys.modules.update(torch=None, ray=None); from jobs.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "logs", *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": python_path(ROOT)},
    )
    return done.stdout


@pytest.mark.ray
@pytest.mark.timeout(580)
def test_a_rank_that_is_killed_stands_in_the_log_with_all_that_came_of_it(tmp_path: Path) -> None:
    killer = Killer()
    with watched_video(tmp_path, killer) as uri:
        setting = Setting("local", 0, "shared", videos=1, edits=1, steps=3, elsewhere={"bad": uri})
        one_group = {"reconstruction": {"groups": 1, "gpus": 1}}
        with staged(setting, 1, Log(tmp_path / "events"), **one_group, retries=1) as campaign:
            killer.family = campaign.scene.family
            start_run(campaign.dataset, tmp_path / "run.log", campaign.environment).ends_with(3)
            output = campaign.place.uri
            events = [json.loads(line) for line in retake_logs(output, "--json").splitlines()]
            print(retake_logs(output))
            # Ray ends the ranks, too, once the wave is over.
            events = [e for e in events if e["event"] not in AT_THE_END]
            rows = {row["video_id"]: row for row in result_rows(campaign.place)}
    assert [rows[name]["status"] for name in ("v000", "bad")] == ["ok", "quarantined"]

    names = [event["event"] for event in events]
    assert names[:3] == ["run began", "job planned", "wave began"]
    assert names[-3:] == ["wave ended", "results stored", "run ended"]
    assert events[-1]["counts"] == {"edited": 1, "failed": 1, "inverted": 1}
    deaths = named(events, "rank died")
    assert {(e["process"], e["rank"], e["code"][:8]) for e in deaths} == {("rank", 0, "signal 9")}
    assert len(named(events, "group died")) == len(deaths)
    assert len(named(events, "group restarting")) in (len(deaths), len(deaths) - 1)
    of_bad = [event for event in events if event.get("video_id") == "bad"]
    assert [event["event"] for event in of_bad] == [
        "video begun",
        *["retry"] * (len(of_bad) - 3),
        "quarantined",
        "edit failed",
    ]
    assert of_bad[-2]["tries"] == rows["bad"]["attempts"] == 2
    of_other = [event["event"] for event in events if event.get("video_id") == "v000"]
    assert [name for name in of_other if name != "retry"] == [
        *["video begun", "video done"] * 2,
        "edit stored",
    ]
    assert len({event["group"] for event in events if event.get("stage") == "editing"}) == 1


def named(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == name]
