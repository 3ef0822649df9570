"""`retake validate`: it finds what a run would find out later, and writes nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from jobs.manifest.schema import SCHEMA
from jobs.prepare import prepare
from jobs.spec import load_job
from jobs.trial import pending_rows
from tests.drawn_videos import draw, grays
from tests.pending_rows import answer
from tests.small_models import change_json

HEAVY = ("torch", "ray", "diffusers", "transformers", "av")


def a_job(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Path:
    """A job file beside its manifest, with a video of 13 frames, `a.mp4`."""
    (folder / "a.mp4").write_bytes(draw(grays(13)))
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "m.parquet")
    job = folder / "job.yaml"
    values = {"manifest": str(folder / "m.parquet"), "output": str(folder / "out")}
    job.write_text(yaml.safe_dump(values | settings))
    return job


def a_row(video: str, *edits: str, **values: Any) -> dict[str, Any]:
    return {"video": video, "edits": [{"prompt": edit} for edit in edits or ("x",)], **values}


def validate(job: Path, *options: str) -> tuple[int, str]:
    """The exit status, and what is printed as one line with single spaces."""
    result = CliRunner().invoke(app, ["validate", str(job), *options])
    return result.exit_code, " ".join(result.output.split())


def test_a_good_job_has_status_0_and_nothing_is_written(tmp_path: Path) -> None:
    job = a_job(tmp_path, [a_row("a.mp4", "x", "y")])
    before = sorted(tmp_path.rglob("*"))
    status, text = validate(job)
    assert status == 0, text
    assert "pending 2 of 2 edits" in text
    assert "1 of 1 video looked for" in text
    assert "nothing that would fail was found" in text
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_videos_are_found_and_named(tmp_path: Path) -> None:
    rows = [a_row(f"gone/{n}.mp4", "x", "y", video_id=f"v{n}") for n in range(5)]
    status, text = validate(a_job(tmp_path, [a_row("a.mp4"), *rows]))
    assert status == 3
    assert "10 of 11 edits would fail: video_not_found: 10 edits" in text
    assert f"v0: {tmp_path}/gone/0.mp4" in text
    assert "and 4 more" in text


def test_what_the_row_check_refuses_is_found(tmp_path: Path) -> None:
    rows = [
        a_row("a.mp4", video_id="a/b"),
        a_row("a.mp4", "x", " ", video_id="second"),
        a_row("a.mp4", video_id="third"),
        a_row("a.mp4", video_id="third"),
        a_row("a.mp4", video_id="fifth", start_frame=-1),
    ]
    status, text = validate(a_job(tmp_path, rows))
    assert status == 3
    for code in ("bad_video_id", "empty_prompt", "duplicate_video_id", "bad_value"):
        assert f"{code}: 1 edit" in text, text
    assert "second/edit-" in text
    assert "2 of 2 videos looked for" in text


def test_rules_are_checked_against_what_is_measured_and_what_travels(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([a_row("a.mp4")], SCHEMA)
    job = a_job(tmp_path, [], score={"frames": True})
    pq.write_table(table.append_column("rank", pa.array([0.5])), tmp_path / "m.parquet")
    assert validate(job, "--set", "accept=[change > 0.1, rank > 0]")[0] == 0
    status, text = validate(job, "--set", "accept=[judge.follows >= 3, rang > 0]")
    assert status == 1
    assert "accept: rule 'judge.follows >= 3': scores.judge.follows is not measured" in text
    assert "accept: rule 'rang > 0': no number 'rang' in the results; did you mean 'rank'?" in text


def test_videos_that_are_shorter_or_no_videos_are_found_by_reading_them(tmp_path: Path) -> None:
    (tmp_path / "short.mp4").write_bytes(draw(grays(6)))
    (tmp_path / "page.mp4").write_text("<html>gone</html>")
    rows = [a_row("a.mp4"), a_row("a.mp4", video_id="b", num_frames=8)]
    job = a_job(tmp_path, [*rows, a_row("short.mp4"), a_row("page.mp4", video_id="page")])
    assert validate(job)[0] == 0
    status, text = validate(job, "--deep", "--set", "video.frames=11")
    assert status == 3
    assert "4 of 4 videos read" in text
    assert "2 clips of 5 frames 1 clip of 9 frames" in text
    assert "video_unreadable: 1 edit page:" in text


def test_the_plan_says_the_number_of_frames_that_clips_will_really_have(tmp_path: Path) -> None:
    job = a_job(tmp_path, [a_row("a.mp4")])
    assert "up to 9 frames" in validate(job, "--set", "video.frames=12")[1]


def test_a_source_reference_without_source_prompts_is_warned_of(tmp_path: Path) -> None:
    rows = [a_row("a.mp4"), a_row("a.mp4", video_id="b", source_prompt="a grey square")]
    how = {"reconstruction": {"reference": "source"}}
    status, text = validate(a_job(tmp_path, rows, **how))
    assert status == 0
    assert "1 video of 2 have no `source_prompt`" in text
    assert "source_prompt" not in validate(a_job(tmp_path, rows))[1]


def test_videos_of_edits_that_are_done_are_not_looked_for(tmp_path: Path) -> None:
    job = a_job(tmp_path, [a_row("a.mp4"), a_row("gone.mp4", video_id="gone")])
    answer(pending_rows(prepare(load_job(str(job)), write=False)))
    status, text = validate(job)
    assert (status, "pending 0 of 2 edits" in text) == (0, True)


@pytest.mark.parametrize("output", ["file", "file/below"])
def test_an_output_that_is_a_file_is_refused(tmp_path: Path, output: str) -> None:
    (tmp_path / "file").write_text("")
    job = a_job(tmp_path, [a_row("a.mp4")], output=str(tmp_path / output))
    status, text = validate(job)
    assert status == 1
    assert "is a file; expected a folder" in text and f"{tmp_path}/file" in text


@pytest.mark.parametrize(
    ("there", "visible", "device", "enough"),
    [
        (0, None, "auto", True),  # it runs on the CPU
        (0, None, "gpu", False),
        (4, None, "auto", True),
        (3, None, "auto", False),
        (8, "0,1", "auto", False),
        (8, "4,5,6,7", "gpu", True),
        (8, "", "auto", True),
        (2, None, "cpu", True),
    ],
)
def test_groups_that_this_machine_has_no_gpus_for_are_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: int,
    visible: str | None,
    device: str,
    enough: bool,
) -> None:
    for number in range(there):
        (tmp_path / f"gpus/{number}").mkdir(parents=True)
    patterns = (f"{tmp_path}/none/*", f"{tmp_path}/gpus/*")
    monkeypatch.setattr("cluster.layout.placement.NVIDIA_GPUS", patterns)
    monkeypatch.setattr("cluster.layout.placement.OTHER_GPUS", (f"{tmp_path}/other",))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    cluster = {"device": device, "reconstruction": {"groups": 4}}
    job = a_job(tmp_path, [a_row("a.mp4")], cluster=cluster)
    status, text = validate(job)
    assert status == (0 if enough else 1), text
    refusal = "need 4 GPUs (editing 4 groups of 1)" if there else "this machine has no GPU that Ray"
    assert (refusal in text) is not enough
    (tmp_path / "other").touch()  # GPUs that nothing here can count
    assert validate(job)[0] == 0
    (tmp_path / "other").unlink()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert validate(job)[0] == 0


def test_validate_imports_no_model_and_no_ray_and_takes_little_time(tmp_path: Path) -> None:
    job = a_job(tmp_path, [a_row("a.mp4", "x", "y")])
    code = (
        "import json, sys\n"
        "from typer.testing import CliRunner\n"
        "from jobs.cli import app\n"
        f"status = CliRunner().invoke(app, ['validate', {str(job)!r}]).exit_code\n"
        "print(json.dumps([status, sorted(sys.modules)]))"
    )
    before = os.times()
    answer = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    after = os.times()
    status, modules = json.loads(answer)
    assert status == 0
    assert not set(HEAVY) & set(modules)
    # Of the processor, since another process may have it: a tenth of this without torch.
    assert after.children_user - before.children_user < 5


def test_more_steps_than_the_checkpoint_has_training_timesteps_are_refused(
    tmp_path: Path, checkpoints: dict[str, Path]
) -> None:
    folder = Path(shutil.copytree(checkpoints["5b"], tmp_path / "5b"))
    change_json(folder / "scheduler/scheduler_config.json", num_train_timesteps=40)
    job = a_job(tmp_path, [a_row("a.mp4")], checkpoint=str(folder))
    status, text = validate(job)
    assert status == 1
    assert "inversion.steps is 50; this checkpoint has 40 training timesteps" in text
    assert validate(job, "--set", "inversion.steps=40")[0] == 0


def test_an_output_that_may_not_be_looked_at_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(path))

    job = a_job(tmp_path, [a_row("a.mp4")])
    monkeypatch.setattr("jobs.prepare.Path", refuse)
    status, text = validate(job)
    assert status == 1
    assert f"output {tmp_path}/out: may not be reached" in text
