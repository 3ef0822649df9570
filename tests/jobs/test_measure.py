"""`retake metrics`: results gain columns, and what was measured is not measured again."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.results.parts import read_parts
from jobs.cli import app
from jobs.report.gather import Gallery
from pipeline.storage import Folder
from tests.report_results import make_failed_row, make_row, write_clips, write_rows
from tests.small_similarity_models import save_clip, save_dino


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {"clip": save_clip(root / "clip"), "dino": save_dino(root / "dino")}


@pytest.fixture
def output(tmp_path: Path) -> Folder:
    rows = [make_row("clip-1", "red"), make_row("clip-1", "blue")]
    rows.append(make_failed_row("VIDEO_EMPTY", "no frames", video_id="clip-2"))
    out = str(tmp_path / "out")
    write_rows(out, rows)
    write_clips(out, rows)
    return Folder(out)


def metrics(output: Folder, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["metrics", output.uri, *options])
    return result.exit_code, result.output


def rows_of(output: Folder) -> dict[str, dict]:
    rows = [row for _, table in read_parts(output) for row in table.to_pylist()]
    return {f"{row['video_id']}/{row['edit_id']}": row for row in rows}


def test_results_gain_columns_that_the_report_shows(output: Folder, models: dict[str, str]) -> None:
    before = rows_of(output)
    status, text = metrics(output, "--clip", models["clip"], "--dino", models["dino"])
    assert status == 0, text
    assert "2 edits measured" in text
    after = rows_of(output)
    for name, row in after.items():
        for column in ("clip_text", "clip_frames", "dino_source"):
            value = row.pop(column)
            assert (value is None) == (row["status"] == "failed")
            assert value is None or -1 <= value <= 1.0001
        assert row.pop("clip_model") == (models["clip"] if row["status"] == "ok" else None)
        assert row.pop("dino_model") == (models["dino"] if row["status"] == "ok" else None)
        assert row == before[name]
    shown = {metric.key for metric in Gallery.read(output, None, 10).metrics}
    assert {"clip_text", "clip_frames", "dino_source"} <= shown


def test_what_was_measured_is_left_alone_and_another_model_measures_again(
    output: Folder, models: dict[str, str], tmp_path: Path
) -> None:
    metrics(output, "--clip", models["clip"])
    first = rows_of(output)["clip-1/red"]
    assert "0 edits measured, 2 had been before" in metrics(output, "--clip", models["clip"])[1]
    added = make_row("clip-1", "green", output="edits/clip-1/red.mp4")
    write_rows(output.uri, [added], "run-2-000000")
    assert "1 edit measured, 2 had been before" in metrics(output, "--clip", models["clip"])[1]
    other = save_clip(tmp_path / "other", seed=1)
    assert "3 edits measured" in metrics(output, "--clip", other)[1]
    assert rows_of(output)["clip-1/red"]["clip_text"] != first["clip_text"]


def test_a_clip_that_cannot_be_read_leaves_its_row_without_numbers(
    output: Folder, models: dict[str, str]
) -> None:
    output.remove("edits/clip-1/red.mp4")
    status, text = metrics(output, "--clip", models["clip"])
    assert status == 3
    assert "1 edit measured" in text
    assert "1 not readable" in text
    assert "edits/clip-1/red.mp4" in text
    assert rows_of(output)["clip-1/red"]["clip_text"] is None


def test_progress_is_stored_while_a_file_is_measured(
    output: Folder, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.measure.SAVE_EVERY_S", -1.0)
    read = Folder.open

    def stop_at_the_second(self: Folder, name: str) -> object:
        if name.endswith("blue.mp4"):
            raise KeyboardInterrupt
        return read(self, name)

    monkeypatch.setattr(Folder, "open", stop_at_the_second)
    status, text = metrics(output, "--clip", models["clip"])
    assert status == 130
    assert "run the same command again" in text
    monkeypatch.undo()
    assert "1 edit measured, 1 had been before" in metrics(output, "--clip", models["clip"])[1]


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        ([], 2, "no model to measure with: give --clip PATH, --dino PATH or both"),
        (["--clip", "/no/such/model"], 1, "--clip /no/such/model: there is no such folder"),
    ],
)
def test_bad_usage_is_refused_before_anything_is_measured(
    output: Folder, options: list[str], code: int, expected: str
) -> None:
    status, text = metrics(output, *options)
    assert status == code
    assert expected in " ".join(text.split())


def test_a_column_of_the_manifest_is_not_written_over(
    output: Folder, models: dict[str, str]
) -> None:
    mine = make_row("clip-9", "red", clip_text=1.0)
    write_rows(output.uri, [mine], "run-2-000000")
    status, text = metrics(output, "--clip", models["clip"])
    assert status == 1
    assert "'clip_text' that came with the manifest" in " ".join(text.split())


def test_a_column_of_the_manifest_that_only_another_model_would_write_is_no_matter(
    output: Folder, models: dict[str, str]
) -> None:
    write_rows(output.uri, [make_row("clip-9", "red", dino_source=1.0)], "run-2-000000")
    refused = "'dino_source' that came with the manifest"
    assert refused in " ".join(metrics(output, "--dino", models["dino"])[1].split())
    assert refused not in " ".join(metrics(output, "--clip", models["clip"])[1].split())
    assert rows_of(output)["clip-1/red"]["clip_text"] is not None


def test_a_name_of_a_model_that_came_with_the_manifest_is_not_written_over(
    output: Folder, models: dict[str, str]
) -> None:
    write_rows(output.uri, [make_row("clip-9", "red", clip_model="mine")], "run-2-000000")
    status, text = metrics(output, "--clip", models["clip"])
    assert status == 1
    assert "'clip_model' that came with the manifest" in " ".join(text.split())


def test_a_device_that_is_not_there_is_refused(output: Folder, models: dict[str, str]) -> None:
    status, text = metrics(output, "--clip", models["clip"], "--device", "gpu")
    assert status == 1
    assert "--device gpu: Expected one of cpu, cuda" in " ".join(text.split())


def test_a_folder_without_results_is_an_error(tmp_path: Path, models: dict[str, str]) -> None:
    status, text = metrics(Folder(str(tmp_path)), "--clip", models["clip"])
    assert status == 1
    assert "no rows in results" in " ".join(text.split())
