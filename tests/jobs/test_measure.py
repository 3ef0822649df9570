"""`retake metrics`: edits gain the scores that they lack, and what was measured is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cluster.results.compaction import current_rows
from cluster.results.parts import part_names
from cluster.stages.score import ScoreEdits
from jobs.cli import app
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
    return result.exit_code, " ".join(result.output.split())


def rows_of(output: Folder) -> dict[str, dict]:
    return {f"{row['video_id']}/{row['edit_id']}": row for row in current_rows(output)}


def test_edits_gain_scores_and_keep_all_else(output: Folder, models: dict[str, str]) -> None:
    before = rows_of(output)
    options = ("--frames", "--clip", models["clip"], "--dino", models["dino"])
    status, text = metrics(output, *options)
    assert status == 0, text
    assert "2 edits measured, 0 had been before" in text
    assert len(part_names(output)) == 1
    for name, row in rows_of(output).items():
        scores, ours = row.pop("scores"), before[name].pop("scores")
        moment, earlier = row.pop("finished_at"), before[name].pop("finished_at")
        assert row == before[name]
        if row["status"] == "failed":
            assert (scores, moment) == (ours, earlier)
            continue
        assert moment > earlier
        assert scores["clip"]["model"] == models["clip"]
        assert scores["dino"]["model"] == models["dino"]
        assert -1 <= scores["clip"]["text"] <= 1
        assert scores["dino"]["structure"] >= 0
        assert scores["frames"]["background_psnr_db"] > 0
        assert scores["judge"] is None


def test_what_was_measured_is_left_alone_and_another_model_measures_again(
    output: Folder, models: dict[str, str], tmp_path: Path
) -> None:
    metrics(output, "--clip", models["clip"])
    first = rows_of(output)["clip-1/red"]
    assert "0 edits measured, 2 had been before" in metrics(output, "--clip", models["clip"])[1]
    assert rows_of(output)["clip-1/red"] == first
    added = make_row("clip-1", "green", output="edits/clip-1/red.mp4")
    write_rows(output.uri, [added], "run-2-000000")
    assert "1 edit measured, 2 had been before" in metrics(output, "--clip", models["clip"])[1]
    other = save_clip(tmp_path / "other", seed=1)
    assert "3 edits measured" in metrics(output, "--clip", other)[1]
    again = rows_of(output)["clip-1/red"]["scores"]["clip"]
    assert again["text"] != first["scores"]["clip"]["text"]


def test_a_kind_that_is_measured_later_leaves_the_earlier_ones(
    output: Folder, models: dict[str, str]
) -> None:
    metrics(output, "--clip", models["clip"])
    clip = rows_of(output)["clip-1/red"]["scores"]["clip"]
    assert "2 edits measured" in metrics(output, "--frames")[1]
    scores = rows_of(output)["clip-1/red"]["scores"]
    assert scores["clip"] == clip
    assert scores["frames"]["change"] is not None


def test_of_an_edit_made_twice_only_the_newest_row_is_measured(
    output: Folder, models: dict[str, str]
) -> None:
    again = make_row("clip-1", "red", run="run-2", output="edits/clip-1/blue.mp4", seed=8)
    write_rows(output.uri, [again], "run-2-000000")
    assert "2 edits measured" in metrics(output, "--frames")[1]
    row = rows_of(output)["clip-1/red"]
    assert (row["seed"], row["run"]) == (8, "run-2")
    assert row["scores"]["frames"]["fingerprint"]


def test_a_clip_that_cannot_be_read_has_the_reason_and_is_tried_again(output: Folder) -> None:
    lost = output.read("edits/clip-1/red.mp4")
    output.remove("edits/clip-1/red.mp4")
    status, text = metrics(output, "--frames")
    assert status == 3
    assert "1 edit measured" in text
    assert "1 without a score: FileNotFoundError" in text
    assert "edits/clip-1/red.mp4" in text
    frames = rows_of(output)["clip-1/red"]["scores"]["frames"]
    assert (frames["change"], frames["fingerprint"]) == (None, None)
    output.write("edits/clip-1/red.mp4", lost)
    status, text = metrics(output, "--frames")
    assert status == 0
    assert "1 edit measured, 1 had been before" in text
    assert rows_of(output)["clip-1/red"]["scores"]["frames"]["error"] is None


def test_a_command_that_was_stopped_keeps_what_it_measured(
    output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = ScoreEdits._pair

    def stop_at_the_second(self: ScoreEdits, row: dict, edit: str, mask: str | None) -> object:
        if edit.endswith("blue.mp4"):
            raise KeyboardInterrupt
        return pair(self, row, edit, mask)

    monkeypatch.setattr(ScoreEdits, "_pair", stop_at_the_second)
    status, text = metrics(output, "--frames")
    assert status == 130
    assert "run the same command again" in text
    monkeypatch.undo()
    assert "1 edit measured, 1 had been before" in metrics(output, "--frames")[1]


def test_the_rules_of_the_job_decide_anew(output: Folder) -> None:
    job = {"accept": ["background_psnr_db >= 0", "change > 2"]}
    output.write("job.yaml", yaml.safe_dump(job).encode())
    metrics(output, "--frames")
    row = rows_of(output)["clip-1/red"]
    assert (row["accepted"], row["rejected_for"]) == (False, ["change > 2"])
    output.write("job.yaml", yaml.safe_dump({"accept": ["change >= 0"]}).encode())
    added = make_row("clip-1", "green", output="edits/clip-1/red.mp4")
    write_rows(output.uri, [added], "run-2-000000")
    metrics(output, "--frames")
    assert rows_of(output)["clip-1/green"]["accepted"] is True


def test_rules_may_name_a_number_of_the_manifest_and_a_wrong_one_is_named(output: Folder) -> None:
    write_rows(output.uri, [make_row("clip-1", "red", run="run-2", votes=3)], "run-2-000000")
    output.write("job.yaml", yaml.safe_dump({"accept": ["votes >= 3"]}).encode())
    metrics(output, "--frames")
    assert rows_of(output)["clip-1/red"]["accepted"] is True
    output.write("job.yaml", yaml.safe_dump({"accept": ["likes >= 3"]}).encode())
    status, text = metrics(output, "--frames")
    assert status == 1
    assert "no number 'likes' in the results" in text
    assert "decide by other rules with `retake accept`" in text


def test_without_options_it_measures_what_the_job_asks_for(output: Folder) -> None:
    output.write("job.yaml", yaml.safe_dump({"score": {"frames": True}}).encode())
    assert "2 edits measured" in metrics(output)[1]
    assert rows_of(output)["clip-1/red"]["scores"]["frames"]["change"] is not None


def test_a_judge_whose_secret_the_run_left_out_is_to_be_named_again(output: Folder) -> None:
    job = {"score": {"judge": "http://someone:***@host:8000/v1"}}
    output.write("job.yaml", yaml.safe_dump(job).encode())
    status, text = metrics(output)
    assert status == 1
    assert "give the whole URL with --judge" in text


def test_a_mask_says_where_the_background_is(output: Folder) -> None:
    edit, source = "edits/clip-1/red.mp4", "sources/clip-1.mp4"
    write_rows(output.uri, [make_row("clip-1", "red", run="run-2", mask=edit)], "run-2-000000")
    output.write(edit, output.read(source))
    assert metrics(output, "--frames")[0] == 0
    frames = rows_of(output)["clip-1/red"]["scores"]["frames"]
    assert frames["changed_fraction"] == 0
    assert "the mask is" in frames["error"]  # a grey clip taken for a mask is one or the other


def test_columns_of_earlier_versions_and_of_the_manifest_stay(output: Folder) -> None:
    older = make_row("clip-1", "red", run="run-2", clip_text=0.25, clip_model="old", mine="a")
    write_rows(output.uri, [older], "run-2-000000")
    metrics(output, "--frames")
    row = rows_of(output)["clip-1/red"]
    assert (row["clip_text"], row["clip_model"], row["mine"]) == (0.25, "old", "a")


def test_a_damaged_file_is_named_and_left(output: Folder) -> None:
    output.write("results/run-0-000000.parquet", b"PAR1 and no more")
    status, text = metrics(output, "--frames")
    assert status == 0
    assert "results/run-0-000000.parquet: cannot be read" in text
    assert "2 edits measured" in text
    assert "results/run-0-000000.parquet" in part_names(output)


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        ([], 2, "nothing to measure: give --frames, --clip PATH, --dino PATH or --judge PATH"),
        (["--clip", "/no/such/model"], 1, "--clip /no/such/model: there is no such folder"),
        (["--judge", "/no/such/model"], 1, "--judge /no/such/model: "),
        (["--frames", "--device", "gpu"], 1, "--device gpu: Expected one of cpu, cuda"),
    ],
)
def test_bad_usage_is_refused_before_anything_is_measured(
    output: Folder, options: list[str], code: int, expected: str
) -> None:
    before = part_names(output)
    status, text = metrics(output, *options)
    assert status == code
    assert expected in text
    assert part_names(output) == before


def test_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    status, text = metrics(Folder(str(tmp_path)), "--frames")
    assert status == 1
    assert "no rows in results" in text


def test_an_edit_whose_best_candidate_is_not_chosen_is_left_to_the_job(output: Folder) -> None:
    first = "candidates/clip-1/red/0.mp4"
    candidates = [{"number": 0, "output": first}, {"number": 1, "output": "candidates/1.mp4"}]
    row = make_row("clip-1", "red", run="run-2", output=first, candidates=candidates)
    write_rows(output.uri, [row], "run-2-000000")
    output.write(first, output.read("edits/clip-1/red.mp4"))
    before = rows_of(output)["clip-1/red"]
    status, text = metrics(output, "--frames")
    assert status == 3
    assert "1 edit measured, 0 had been before" in text
    assert "1 without a score: the best of their candidates is not chosen yet" in text
    assert rows_of(output)["clip-1/red"] == before
