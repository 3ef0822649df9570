"""From the command to the arithmetic a row crosses few functions: whoever debugs it reads them all.

They are counted where they run: in the driver from `jobs.cli.run` to `cluster.dataflow.run`, in the
owner of a group while it waits, and in a rank when it attends.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from cluster.job import Job
from cluster.ranks.editing import prompt_store
from cluster.ranks.owner import RankGroup
from cluster.settings import ClusterSettings, GroupSettings
from cluster.stages import group as stages
from cluster.stages.blocks import EditWork, VideoWork, rebuilt
from cluster.stages.invert import InvertVideos
from cluster.stages.reconstruct import ReconstructEdits
from jobs.cli import app
from pipeline.media.encoding import write_clip
from pipeline.model.checkpoint import load_text_encoder, open_checkpoint
from pipeline.model.text_encoder import encode_prompt
from pipeline.settings import EditingSettings, Inversion, VideoSettings
from tests.cluster.test_stages import Reports
from tests.drawn_videos import waves
from tests.stacks import functions_of_ours

MOST = 15


def frames_of_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """From `retake run` to the graph."""
    from jobs.manifest.writing import write_manifest

    found: list[str] = []

    def stop(*_: Any) -> None:
        found.extend(functions_of_ours(sys._getframe(1)))
        raise KeyboardInterrupt

    monkeypatch.setattr("cluster.dataflow.run", stop)
    write_manifest(
        [{"video": "a.mp4", "edits": [{"prompt": "a fox"}]}], str(tmp_path / "m.parquet")
    )
    job = tmp_path / "job.yaml"
    job.write_text(f"manifest: {tmp_path}/m.parquet\noutput: {tmp_path}/o\n")
    CliRunner().invoke(app, ["run", str(job)])
    return [*found[found.index("run") :], "run"]


@pytest.fixture
def job(checkpoints: dict[str, Path], tmp_path: Path) -> Job:
    settings = EditingSettings(
        checkpoint=str(checkpoints["5b"]),
        output=str(tmp_path / "out"),
        video=VideoSettings(height=32, width=48, frames=9),
        inversion=Inversion(steps=2),
    )
    info = open_checkpoint(settings.checkpoint)
    tokenizer, encoder = load_text_encoder(info, torch.float32, "cpu")
    for prompt in ("", "a fox"):
        embedding = encode_prompt(tokenizer, encoder, prompt, info.text_tokens)
        prompt_store(settings, info).write(prompt, embedding)
    return Job(
        manifest="m",
        files=(),
        base=str(tmp_path),
        editing=settings,
        cluster=ClusterSettings(),
        checkpoint_fingerprint=info.fingerprint,
        run="r",
    )


@pytest.mark.distributed
def test_a_row_crosses_at_most_fifteen_functions_from_the_command_to_the_arithmetic(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "clip.mp4").open("wb") as file:
        write_clip(file, torch.from_numpy(waves(9, 40, 60)), fps=8)
    monkeypatch.setenv("STACKS", str(tmp_path / "stacks"))
    command = [sys.executable, "-m", "tests.cluster.ranks.traced_rank"]
    monkeypatch.setattr(stages, "rank_command", lambda: command)
    of_owner: list[list[str]] = []
    receive = RankGroup._receive

    def watched(group: RankGroup, number: int) -> Any:
        of_owner.append(functions_of_ours(sys._getframe(1)))
        return receive(group, number)

    monkeypatch.setattr(RankGroup, "_receive", watched)
    edit = EditWork("a fox", "fox", fingerprint="f")
    work = VideoWork(str(tmp_path / "clip.mp4"), "clip", edits=(edit,), pending_edits=1)
    table = rebuilt(pa.table({"video": ["clip"]}), [work], [0])
    for kind in (InvertVideos, ReconstructEdits):
        stage = kind(job, Reports(), GroupSettings(), "cpu", 240, 1)
        of_owner.clear()
        table = stage(table)
        stage.group.close()
    assert table["status"].to_pylist() == ["ok"]
    of_ranks = [json.loads(line) for line in (tmp_path / "stacks").read_text().splitlines()]
    monkeypatch.undo()
    of_driver = frames_of_driver(monkeypatch, tmp_path)
    inverting, editing = of_ranks
    print(of_driver, of_owner[-1], inverting, editing, sep="\n")
    before = len(of_driver) + len(of_owner[-1])
    assert before + inverting.index("pec") + 1 <= MOST
    assert before + len(inverting) <= MOST
    assert before + len(editing) <= MOST
