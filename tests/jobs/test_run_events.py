"""What a run writes to its log, and that nothing of a run depends on it."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import EXIT_DONE, EXIT_SOME_FAILED, app
from tests.in_process import run_in_process
from tests.jobs.test_run import a_row, a_video, results, run


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    run_in_process(monkeypatch)


def logged(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert app(["logs", f"{folder}/out", "--json"], standalone_mode=False) == EXIT_DONE
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_run_writes_what_happens_and_a_refused_row_is_the_drivers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        a_row(a_video(tmp_path / "a.mp4"), "red", "blue", video_id="a"),
        a_row("gone.mp4", "red", video_id="b"),
    ]
    assert run(tmp_path, rows) == EXIT_SOME_FAILED
    events = logged(tmp_path, capsys)
    of_driver = [event for event in events if event["process"] == "driver"]
    assert [event["event"] for event in of_driver if event["event"] != "results stored"] == [
        "run began",
        "job planned",
        "edit failed",
        "wave began",
        "wave ended",
        "run ended",
    ]
    failed = of_driver[2]
    assert (failed["video_id"], failed["edit_id"], failed["code"]) == (
        "b",
        "red",
        "video_not_found",
    )
    assert of_driver[-1]["counts"] == {"edited": 2, "failed": 1, "inverted": 1}
    stored = [event["counts"]["rows"] for event in of_driver if event["event"] == "results stored"]
    assert sum(stored) == 3
    of_owners = [event["event"] for event in events if event["process"] == "owner"]
    assert of_owners == [
        "prompts encoded",
        *["video begun", "video done"] * 2,
        *["edit stored"] * 2,
    ]
    assert len({event["run"] for event in events}) == 1


def test_a_run_that_cannot_write_its_log_makes_the_same_edits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/logs").write_text("a file")
    rows = [a_row(a_video(tmp_path / "a.mp4"), "red", video_id="a")]
    assert run(tmp_path, rows) == EXIT_DONE
    assert results(tmp_path)["a", "red"]["status"] == "ok"
    assert (tmp_path / "out/logs").read_text() == "a file"
    assert capsys.readouterr().err.count("events cannot be stored") <= 3
