"""The commands that run nothing: what they print, and their exit status."""

import io
import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from cluster.dataflow import Counts
from jobs.cli import app
from jobs.display import Progress, duration, per_time
from jobs.prepare import manifest_folder
from tests.cluster.test_results import a_result, store
from tests.drawn_videos import draw, grays


def retake(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def put_video(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(draw(grays(6)))


def test_wrong_usage_is_exit_status_two() -> None:
    assert retake("run")[0] == 2
    assert retake("fly")[0] == 2
    assert retake("run", "job.yaml", "--fast")[0] == 2


def test_a_job_file_that_is_missing_is_exit_status_one() -> None:
    status, text = retake("run", "nowhere.yaml")
    assert status == 1
    assert "error: job file nowhere.yaml: cannot be read" in text


def test_validate_shows_what_a_job_is_going_to_do(tmp_path: Path) -> None:
    put_video(tmp_path / "clips/a.mp4")
    manifest = str(tmp_path / "m.parquet")
    status, text = retake(
        "manifest", str(tmp_path / "clips"), manifest, "--prompt", "x", "--prompt", "y"
    )
    assert (status, text) == (0, f"{manifest}: 1 videos, 2 edits\n")
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({"manifest": manifest, "output": str(tmp_path / "out [/b]")}))
    status, text = retake("validate", str(job), "--set", "inversion.steps=7")
    assert status == 0
    assert "1 videos, 2 edits" in text
    assert "pec, 4 of 7 steps, 5 forwards, once for each video" in text
    # However wide the terminal is.
    steps = "4 steps from 0.6 of the levels, reference null, guidance 2 in 2 of them"
    assert steps in " ".join(text.split())
    changes = ("inversion.steps=7", "inversion.method=ddim", "reconstruction.start=inverted")
    status, text = retake("validate", str(job), *(f"--set={change}" for change in changes))
    assert "ddim, 7 of 7 steps, 7 forwards, once for each video" in text
    assert "7 steps from inverted" in text
    assert not (tmp_path / "out [/b]/results").exists()


def test_three_frames_lead_from_the_command_to_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_video(tmp_path / "clips/a.mp4")
    manifest = str(tmp_path / "m.parquet")
    retake("manifest", str(tmp_path / "clips"), manifest, "--prompt", "x")
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({"manifest": manifest, "output": str(tmp_path / "out")}))
    callers: list[str] = []

    def run(*arguments: object) -> Counts:
        frame = sys._getframe(1)
        while frame is not None and "run" not in callers:
            callers.append(frame.f_code.co_name)
            frame = frame.f_back
        return Counts(edited=1)

    monkeypatch.setattr("cluster.dataflow.run", run)
    status, text = retake("run", str(job))
    assert status == 0, text
    assert callers == ["run_job", "run"]
    about = yaml.safe_load((tmp_path / "out/job.yaml").read_text())
    assert list(about)[:2] == ["manifest", "output"]
    assert about["reconstruction"]["guidance_steps"] == [0.0, 0.4]
    assert "edits done" in text


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("jobs.report.write_report", fail)
    assert isinstance(CliRunner().invoke(app, ["report", "out"]).exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("cluster", "complaint"),
    [
        ({"gpus": 3, "ulysses": 3}, "ulysses"),
        ({"gpus": 4, "ulysses": 2, "ring": 1}, "4"),
        ({"gpus": 2, "ring": 3}, "ring"),
    ],
)
def test_degrees_that_the_checkpoint_cannot_be_split_by_are_refused(
    tmp_path: Path, cluster: dict, complaint: str
) -> None:
    put_video(tmp_path / "clips/a.mp4")
    retake("manifest", str(tmp_path / "clips"), str(tmp_path / "m.parquet"), "--prompt", "x")
    job = tmp_path / "job.yaml"
    values = {
        "manifest": str(tmp_path / "m.parquet"),
        "output": str(tmp_path / "out"),
        "cluster": {"inversion": cluster},
    }
    job.write_text(yaml.safe_dump(values))
    status, text = retake("validate", str(job))
    assert status == 1
    assert complaint in text


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    put_video(tmp_path / "clips/a.mp4")
    retake("manifest", str(tmp_path / "clips"), str(tmp_path / "m.parquet"), "--prompt", "x")
    (tmp_path / "file").write_text("in the way")
    job = tmp_path / "job.yaml"
    values = {"manifest": str(tmp_path / "m.parquet"), "output": str(tmp_path / "file/out")}
    job.write_text(yaml.safe_dump(values))
    status, text = retake("validate", str(job))
    assert status == 1
    assert "cannot be written" in text


def test_a_table_becomes_a_manifest_and_its_other_columns_pass_through(tmp_path: Path) -> None:
    put_video(tmp_path / "a.mp4")
    (tmp_path / "t.csv").write_text("video,prompt,split\na.mp4,red,train\n")
    status, text = retake("manifest", str(tmp_path / "t.csv"), str(tmp_path / "m.parquet"))
    assert status == 0, text
    row = pq.read_table(tmp_path / "m.parquet").to_pylist()[0]
    assert row["split"] == "train"
    assert row["edits"][0]["prompt"] == "red"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{}/nowhere"], "nowhere"),
        (["nosuch://x", "--prompt", "x"], "nosuch://x: cannot be read"),
        (["{}/empty", "--prompt", "x"], "no video file matches"),
        (["{}/t.csv", "--prompt", "x"], "--prompt goes with a folder"),
        (["{}/t.csv", "--format", "excel"], "expected one of folder, table"),
    ],
)
def test_a_source_that_is_no_manifest_is_refused(
    tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.csv").write_text("video,prompt\na.mp4,red\n")
    filled = [argument.format(tmp_path) for argument in arguments]
    status, text = retake("manifest", filled[0], str(tmp_path / "m.parquet"), *filled[1:])
    assert status == 1
    assert complaint in text
    assert not (tmp_path / "m.parquet").exists()


def test_gc_reports_what_it_deleted(tmp_path: Path) -> None:
    from pipeline.storage import Folder

    output = Folder(str(tmp_path))
    output.write("trajectories/stale/index.json", b"{}")
    store(output, "r", a_result("a", "1", trajectory="kept"))
    assert retake("gc", str(tmp_path)) == (0, "1 trajectories cleaned up, 0.0 MB deleted\n")
    assert retake("gc", str(tmp_path), "--keep", "some")[0] == 1


def test_a_report_of_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    status, text = retake("report", str(tmp_path))
    assert status == 1
    assert "error:" in text


def test_without_a_terminal_progress_is_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.display.LINE_EVERY_S", 0.0)
    out = io.StringIO()
    with Progress(Console(file=out, width=200), 10) as progress:
        progress.show(Counts(inverted=1))
        progress.show(Counts(inverted=2, edited=4, failed=1))
        progress.show(Counts(inverted=2, edited=4, failed=1))
    lines = out.getvalue().splitlines()
    assert len(lines) >= 2
    assert lines[0].startswith("1 videos inverted · 0 of 10 edits done · 0 failed")
    assert "4 of 10 edits done · 1 failed" in lines[1]
    assert " left" in lines[1]
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_progress_is_one_live_line() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with Progress(console, 10) as progress:
        progress.show(Counts(edited=4))
    assert "4 of 10 edits done" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert "\x1b[" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (18_720, "5 h 12 min"), (273_600, "3 d 4 h")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(2.0, "2.0 edits/s"), (0.05, "3.0 edits/min"), (0.001, "3.6 edits/h"), (1e-4, "8.6 edits/d")],
)
def test_rates_are_readable(rate: float, text: str) -> None:
    assert per_time(rate) == text


@pytest.mark.parametrize(
    ("uri", "files", "folder"),
    [
        ("/data/m.parquet", ("/data/m.parquet",), "/data"),
        ("/data/m.pq", ("/data/m.pq",), "/data"),
        ("s3://b/d/m.parquet", ("s3://b/d/m.parquet",), "s3://b/d"),
        ("/data/parts", ("/data/parts/0.parquet",), "/data/parts"),
        ("s3://b/parts/", ("s3://b/parts/0.parquet", "s3://b/parts/1.parquet"), "s3://b/parts"),
    ],
)
def test_videos_are_relative_to_the_manifests_folder(
    uri: str, files: tuple[str, ...], folder: str
) -> None:
    assert manifest_folder(uri, files) == folder
