"""A job whose checkpoint lies in object storage, on one machine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

from cluster import dataflow
from jobs.cli import EXIT_CANNOT_RUN, EXIT_DONE, app
from pipeline.model.checkpoint import open_checkpoint
from tests.checkpoint_stores import in_memory
from tests.in_process import Group, run_in_process
from tests.jobs.test_run import a_row, a_video, results, run

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The embedded checkpoint in a store of this process, where the job runs too."""
    run_in_process(monkeypatch)
    monkeypatch.setenv("RETAKE_CACHE", str(tmp_path / "cache"))
    return in_memory(open_checkpoint("embedded").path, f"{tmp_path.name}/model")


def test_a_job_fetches_each_file_once_and_validation_no_weights(
    tmp_path: Path, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, copied = fsspec.filesystem("memory"), Counter[str]()
    get_file = MemoryFileSystem.get_file  # of the class: each thread has an object of its own

    def count(self: MemoryFileSystem, source: str, target: str) -> None:
        copied.update([source])
        get_file(self, source, target)

    monkeypatch.setattr(MemoryFileSystem, "get_file", count)
    rows = [a_row(a_video(tmp_path / "a.mp4"), "red", video_id="a")]
    assert run(tmp_path, rows, checkpoint=stored) == EXIT_DONE
    (row,) = results(tmp_path).values()
    assert row["status"] == "ok"
    listed = {name: 1 for name in fs.find(stored) if name.endswith((".json", ".safetensors"))}
    assert copied == listed
    copied.clear()
    monkeypatch.setenv("RETAKE_CACHE", str(tmp_path / "another node"))
    checked = CliRunner().invoke(app, ["validate", str(tmp_path / "job.yaml")])
    assert checked.exit_code == 0, checked.output
    assert copied
    assert not [name for name in copied if name.endswith(".safetensors")]


def test_a_node_has_the_weights_before_its_ranks_start(
    tmp_path: Path, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their start has a deadline, after which the next try would begin anew."""
    start, found = Group.ready, list[set[str]]()

    def look_and_start(group: Group) -> None:
        weights = (tmp_path / "cache/checkpoints").rglob("*.safetensors")
        found.append({path.parent.name for path in weights})
        start(group)

    monkeypatch.setattr(Group, "ready", look_and_start)
    rows = [a_row(a_video(tmp_path / "a.mp4"), "red", video_id="a")]
    assert run(tmp_path, rows, checkpoint=stored) == EXIT_DONE
    assert found[0] in ({"text_encoder"}, {"transformer", "vae"})
    assert found[-1] == {"text_encoder", "transformer", "vae"}


def test_a_checkpoint_that_is_replaced_after_the_driver_looked_ends_the_job(
    tmp_path: Path, stored: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start, fs = dataflow.run, fsspec.filesystem("memory")
    name = f"/{stored.removeprefix('memory://')}/{WEIGHTS}"

    def replace_and_start(*arguments: Any, **more: Any) -> object:
        fs.pipe_file(name, fs.cat_file(name)[:-1] + b"\7")
        return start(*arguments, **more)

    monkeypatch.setattr(dataflow, "run", replace_and_start)
    rows = [a_row(a_video(tmp_path / "a.mp4"), "red", video_id="a")]
    assert run(tmp_path, rows, checkpoint=stored) == EXIT_CANNOT_RUN
    shown = " ".join(capsys.readouterr().err.split())
    assert f"checkpoint '{stored}'" in shown
    assert "its files were changed since the job started" in shown
