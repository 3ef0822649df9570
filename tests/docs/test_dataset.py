"""The worked example of docs/export.md: from three clips to a dataset and its card."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.results.compaction import current_rows
from jobs.demo.job import write_demo
from pipeline.storage import Folder
from tests.docs.pages import ROOT, blocks, commands
from tests.docs.test_commands import shell
from tests.in_process import run_in_process

SMALL = ("inversion.steps=2", "video.height=32", "video.width=32", "video.frames=5")


def test_five_commands_lead_from_three_clips_to_a_dataset_and_its_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in_process(monkeypatch)
    write_demo(tmp_path / "demo")
    (tmp_path / "demo/clips").rename(tmp_path / "clips")
    monkeypatch.chdir(tmp_path)
    (block,) = (b for b in blocks(ROOT / "docs/export.md", "console") if "retake init" in b)
    every = commands(block)
    assert len(every) == 5
    changes = "".join(f" --set {change}" for change in SMALL)
    printed = [shell(f"{one}{changes}" if " run " in one else one) for one in every]
    assert "3 videos, 6 edits" in printed[0]
    rows = current_rows(Folder(str(tmp_path / "out")))
    accepted = sum(row["accepted"] for row in rows)
    assert len(rows) == 6
    assert all(row["scores"]["frames"]["change"] is not None for row in rows)
    tables = [pq.read_table(file) for file in (tmp_path / "dataset").rglob("*.parquet")]
    assert sum(table.num_rows for table in tables) == accepted > 0
    assert f"{accepted} pair" in printed[4]
    assert (tmp_path / "dataset/README.md").read_text().startswith("---\n")
