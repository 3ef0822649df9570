"""A row that ends the process that owns its rank group, whenever it is tried."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.checks import committed, made_again, result_rows
from tests.faults.record import Log
from tests.faults.scene.processes import Family
from tests.faults.scene.runs import start_run
from tests.faults.scene.stage import Setting, staged
from tests.faults.scene.watched import watched_video

ONE_GROUP = {"reconstruction": {"groups": 1, "gpus": 1}}


class Poison:
    """Kills the owner of the rank that reads a video, as long as it is poison."""

    def __init__(self) -> None:
        self.family: Family | None = None
        self.killed: set[int] = set()

    def __call__(self, port: int) -> None:
        rank = self.family.with_port(port) if self.family else None
        owner = self.family.above(rank, "owner") if self.family and rank else None
        if owner:
            self.killed.add(owner.pid)
            os.kill(owner.pid, signal.SIGKILL)


@pytest.mark.ray
@pytest.mark.timeout(580)
@pytest.mark.parametrize(
    ("retries", "asked"), [(0, False), pytest.param(2, True, marks=pytest.mark.soak)]
)
def test_a_row_that_kills_its_owner_is_quarantined_and_tried_again_only_if_asked(
    tmp_path: Path, retries: int, asked: bool
) -> None:
    poison = Poison()
    with watched_video(tmp_path, poison) as uri:
        setting = Setting("local", 0, "shared", videos=1, edits=1, steps=3, elsewhere={"bad": uri})
        log = Log(tmp_path / "events.jsonl")
        with staged(setting, 1, log, **ONE_GROUP, retries=retries) as campaign:
            dataset, place, variables = campaign.dataset, campaign.place, campaign.environment
            poison.family = campaign.scene.family

            start_run(dataset, tmp_path / "first.log", variables).ends_with(3)
            rows = {row["video_id"]: row for row in result_rows(place)}
            assert set(rows) == {"v000", "bad"}
            assert rows["v000"]["status"] == "ok"
            bad = rows["bad"]
            assert (bad["status"], bad["error_code"]) == ("quarantined", "rank_died")
            assert bad["attempts"] == retries + 1
            assert "the process that owns its rank group, or its node, ended" in bad["error"]
            # The first time it may have been another row's doing, and is not counted.
            assert len(poison.killed) == 1 + retries + 1

            before = committed(place)
            again = start_run(dataset, tmp_path / "again.log", variables)
            again.ends_with(0)
            assert "nothing is pending" in again.text
            assert result_rows(place) == [*rows.values()]

            if not asked:
                return
            poison.family = None  # it is none any more
            last = start_run(dataset, tmp_path / "asked.log", variables, "--retry-quarantined")
            last.ends_with(0)
            assert set(committed(place)) == dataset.edits
            assert not made_again(before, committed(place))
