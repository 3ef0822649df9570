"""An owner of a rank group that is stopped for good, as on a machine that froze."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cluster.driver import nodes
from jobs.cli import app
from tests.faults.checks import unfinished
from tests.faults.record import Log
from tests.faults.scene.processes import Family, Process
from tests.faults.scene.stage import Setting, staged
from tests.faults.scene.watched import watched_video

SILENT_S = 15.0
"""Three signs of life; two minutes is what a run allows."""


class Stop:
    """Stops the owner of the first rank that reads a video."""

    def __init__(self) -> None:
        self.family: Family | None = None
        self.stopped: Process | None = None

    def __call__(self, port: int) -> None:
        rank = self.family.with_port(port) if self.family and not self.stopped else None
        owner = self.family.above(rank, "owner") if self.family and rank else None
        if owner:
            self.stopped = owner
            os.kill(owner.pid, signal.SIGSTOP)


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.timeout(580)
def test_the_rows_of_an_owner_that_is_stopped_are_made_by_others_and_it_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "SILENT_S", SILENT_S)
    stop = Stop()
    with watched_video(tmp_path, stop) as uri:
        there = {"watched": uri}
        setting = Setting("local", 0, "shared", videos=3, edits=2, steps=3, elsewhere=there)
        with staged(setting, 1, Log(tmp_path / "events.jsonl")) as campaign:
            stop.family = campaign.scene.family
            monkeypatch.delenv("RAY_ADDRESS", raising=False)
            for name, value in campaign.environment.items():
                monkeypatch.setenv(name, value)
            assert app(["run", str(campaign.dataset.job)], standalone_mode=False) == 0
            assert stop.stopped
            assert not stop.stopped.runs
            assert not unfinished(campaign.place, campaign.dataset)
