"""A dozen faults at drawn moments into real jobs; the long form is `make soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaign import moments_of
from tests.faults.record import Log, table
from tests.faults.scene.stage import Setting, staged

SEED = 14
MOST_S = 3.0
"""Longer faults are for the soak."""
ON_NODES = (
    "rank killed",
    "helper actor killed",
    "owner killed",
    "rank out of memory",
    "driver killed",
    "rank paused",
    "driver stopped with SIGTERM",
)
ON_S3 = (
    "storage answers 503",
    "storage resets connections",
    "storage cuts",
    "storage takes no uploads",
    "storage down",
    "rank killed",
)


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.distributed
@pytest.mark.timeout(580)
@pytest.mark.parametrize(
    ("setting", "kinds"),
    [
        pytest.param(
            Setting("local", workers=2, layout="pair", videos=12, edits=2, steps=40),
            ON_NODES,
            marks=pytest.mark.soak,
        ),
        (Setting("s3", workers=0, layout="shared", videos=8, edits=2, steps=40), ON_S3),
    ],
    ids=["nodes", "s3"],
)
def test_a_job_ends_with_each_edit_once_whatever_is_killed_stopped_or_unreachable(
    tmp_path: Path, setting: Setting, kinds: tuple[str, ...]
) -> None:
    log = Log(tmp_path / "events.jsonl")
    with staged(setting, SEED, log) as campaign:
        edits = setting.videos * setting.edits
        problems = campaign.go(moments_of(campaign.scene.draw, kinds, edits, MOST_S))
    print(table(log.events()))
    print("\n".join(map(str, log.events())))
    assert not problems
