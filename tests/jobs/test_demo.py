"""The demo: its clips and prompts, and that the embedded checkpoint really edits."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from cluster.results.parts import read_parts
from jobs.demo import world
from jobs.demo.job import CLIPS, write_demo
from jobs.demo.judge import Verdict, judge
from jobs.spec import parse_job
from pipeline import Editor, Inversion
from pipeline.media.decoding import read_clip
from pipeline.storage import Folder
from tests.jobs.test_training import sample

STEPS = 25


@pytest.fixture(scope="module")
def editor() -> Editor:
    return Editor.from_pretrained("pkg://jobs.demo/checkpoint", device="cpu")


def test_the_demo_is_a_job_of_three_clips_with_two_edits_each(tmp_path: Path) -> None:
    job = parse_job(write_demo(tmp_path), source="the demo")
    rows = pq.read_table(job.manifest).to_pylist()
    assert [row["video_id"] for row in rows] == list(CLIPS)
    assert [len(row["edits"]) for row in rows] == [2, 2, 2]
    assert rows[0]["source_prompt"] == "a red square moving right on a white background"
    assert rows[0]["edits"][1]["prompt"] == "a red ring moving right on a white background"


def test_writing_the_demo_again_leaves_its_clips_as_they_are(tmp_path: Path) -> None:
    write_demo(tmp_path)
    clips = sorted((tmp_path / "clips").iterdir())
    before = [clip.stat().st_mtime_ns for clip in clips]
    write_demo(tmp_path)
    assert len(clips) == 3
    assert [clip.stat().st_mtime_ns for clip in clips] == before


def test_the_embedded_checkpoint_is_small_and_diffusers_samples_from_it() -> None:
    folder = Path(str(resources.files("jobs.demo") / "checkpoint"))
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 12e6
    assert sample(folder).shape == (1, world.FRAMES, world.SIZE, world.SIZE, 3)


@pytest.mark.parametrize("name", CLIPS)
def test_the_embedded_checkpoint_makes_the_edits_of_the_demo(editor: Editor, name: str) -> None:
    source, edits = CLIPS[name]
    trajectory = editor.invert(torch.from_numpy(world.draw(source)), Inversion(steps=STEPS))
    videos = editor.reconstruct(trajectory, [world.prompt(asked) for asked in edits.values()])
    for video, asked in zip(videos, edits.values(), strict=True):
        assert_right(judge(source, asked, video.numpy()))


@pytest.mark.soak
@pytest.mark.ray
def test_the_demos_command_makes_six_right_edits_and_a_report_and_then_has_nothing_to_do(
    tmp_path: Path,
) -> None:
    def retake_demo() -> str:
        command = [sys.executable, "-m", "jobs.cli", "demo", "--output", str(tmp_path)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=dict(os.environ),
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    retake_demo()
    output = tmp_path / "output"
    rows = [row for _, table in read_parts(Folder(str(output))) for row in table.to_pylist()]
    assert len(rows) == 6
    for row in rows:
        source, edits = CLIPS[row["video_id"]]
        with (output / row["output"]).open("rb") as file:
            clip = read_clip(
                file, name=row["output"], height=world.SIZE, width=world.SIZE, frames=world.FRAMES
            )
        assert_right(judge(source, edits[row["edit_id"]], clip.frames.numpy()))
    assert (output / "report" / "index.html").exists()
    assert "nothing is pending" in retake_demo()


def assert_right(verdict: Verdict) -> None:
    assert verdict.colour_right, verdict
    assert verdict.shape_right, verdict
    assert verdict.background_right, verdict
    assert verdict.mean_centroid_error_px < 2.5, verdict
    assert verdict.background_psnr_db > 27.0, verdict
