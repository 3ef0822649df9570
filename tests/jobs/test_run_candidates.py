"""A job with candidates: what of their files stays, and further rounds of rejected edits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.driver import scoring
from cluster.stages.score import ScoreEdits
from jobs.cli import EXIT_CANNOT_RUN, EXIT_DONE, EXIT_SOME_FAILED, app
from tests.in_process import run_in_process
from tests.jobs.test_run import a_mask, a_row, a_video, results, run

SCORE = {"frames": True, "rank_by": "-frames.change"}
TRIES: dict[str, Any] = {"candidates": [{"noise": 0.5}, {"start": 0.34}]}
IMPOSSIBLE = ["background_psnr_db > 200"]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    run_in_process(monkeypatch)
    monkeypatch.setattr(scoring, "PAUSE_S", 0.0)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [a_row(a_video(folder / "a.mp4"), "red", "blue", video_id="a")]


def files(folder: Path) -> list[str]:
    out = folder / "out"
    found = (
        path.relative_to(out)
        for name in ("edits", "candidates")
        for path in (out / name).rglob("*.mp4")
    )
    return sorted(map(str, found))


def test_candidates_that_are_not_chosen_are_dropped_when_the_run_ends(tmp_path: Path) -> None:
    assert run(tmp_path, rows_of(tmp_path), score=SCORE, reconstruction=TRIES) == EXIT_DONE
    assert files(tmp_path) == ["edits/a/blue.mp4", "edits/a/red.mp4"]
    for row in results(tmp_path).values():
        assert [one["output"] for one in row["candidates"]] == [None] * 3
        assert [one["error"] for one in row["candidates"]] == [None] * 3
        assert json.loads(row["candidates"][1]["changes"])["noise"] == 0.5
        assert (tmp_path / "out" / row["output"]).stat().st_size == row["size_bytes"]


def test_an_edit_that_no_candidate_satisfied_gets_further_rounds_and_no_more(
    tmp_path: Path,
) -> None:
    rows, how = rows_of(tmp_path), TRIES | {"until_accepted": 3}
    wanted = {"score": SCORE, "accept": IMPOSSIBLE, "reconstruction": how}
    assert run(tmp_path, rows, **wanted) == EXIT_DONE
    found = results(tmp_path)
    for row in found.values():
        assert (row["status"], row["accepted"], row["round"]) == ("ok", False, 2)
        # the first round makes all; of later ones only what another seed changes
        assert [one["number"] for one in row["candidates"]] == [0, 1, 2, 3 + 1, 6 + 1]
        changes = {one["number"]: one["scores"]["frames"]["change"] for one in row["candidates"]}
        assert changes[row["candidate"]] == min(changes.values()), "a worse one took its place"
        assert row["output"] == f"edits/a/{row['edit_id']}.mp4"
        assert (tmp_path / "out" / row["output"]).stat().st_size == row["size_bytes"]
    assert files(tmp_path) == ["edits/a/blue.mp4", "edits/a/red.mp4"]
    assert run(tmp_path, rows, **wanted) == EXIT_DONE
    assert results(tmp_path) == found, "a round too many"


def test_an_accepted_edit_gets_no_second_round(tmp_path: Path) -> None:
    how = TRIES | {"until_accepted": 3}
    rules = ["background_psnr_db > 0"]
    code = run(tmp_path, rows_of(tmp_path), score=SCORE, accept=rules, reconstruction=how)
    assert code == EXIT_DONE
    assert {row["round"] for row in results(tmp_path).values()} == {0}


@pytest.mark.soak
def test_a_later_run_goes_on_with_the_rounds_that_are_left(tmp_path: Path) -> None:
    rows, wanted = rows_of(tmp_path), {"score": SCORE, "accept": IMPOSSIBLE}
    assert run(tmp_path, rows, **wanted, reconstruction=TRIES) == EXIT_DONE
    assert {row["round"] for row in results(tmp_path).values()} == {0}
    how = TRIES | {"until_accepted": 2}
    assert run(tmp_path, rows, **wanted, reconstruction=how) == EXIT_DONE
    for row in results(tmp_path).values():
        assert (row["round"], len(row["candidates"])) == (1, 4)
        assert (tmp_path / "out" / row["output"]).stat().st_size == row["size_bytes"]


def test_a_run_that_ends_before_a_choice_leaves_a_good_edit_and_the_next_one_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(tmp_path)

    def away(*_: Any) -> Any:
        raise ConnectionResetError("storage is away")

    with monkeypatch.context() as patched:
        patched.setattr(ScoreEdits, "_changes", away)
        run(tmp_path, rows, score=SCORE, reconstruction=TRIES)
    for row in results(tmp_path).values():
        assert row["output"] == f"candidates/a/{row['edit_id']}/0.mp4"
        assert (tmp_path / "out" / row["output"]).stat().st_size == row["size_bytes"]
    assert len(files(tmp_path)) == 6, "what is not chosen yet stays"
    assert run(tmp_path, rows, score=SCORE, reconstruction=TRIES) == EXIT_DONE
    assert files(tmp_path) == ["edits/a/blue.mp4", "edits/a/red.mp4"]


def test_what_cannot_be_chosen_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score = {"frames": True, "rank_by": "frames.chnge"}
    code = run(tmp_path, rows_of(tmp_path), score=score, reconstruction=TRIES)
    assert code == EXIT_CANNOT_RUN
    assert "score.rank_by is 'frames.chnge'" in capsys.readouterr().err


def test_a_run_of_a_part_gives_further_rounds_to_what_it_takes_alone(tmp_path: Path) -> None:
    rows, wanted = rows_of(tmp_path), {"score": SCORE, "accept": IMPOSSIBLE}
    assert run(tmp_path, rows, **wanted, reconstruction=TRIES) == EXIT_DONE
    how = TRIES | {"until_accepted": 2}
    easy = {**wanted, "accept": ["background_psnr_db > 0"]}
    assert run(tmp_path, rows, **easy, reconstruction=how) == EXIT_DONE
    assert {row["round"] for row in results(tmp_path).values()} == {0}, "rejected by other rules"
    for options, rounds in ((("--limit", "1"), (0, 0)), (("--only", "a/red"), (0, 1))):
        assert run(tmp_path, rows, options=options, **wanted, reconstruction=how) == EXIT_DONE
        found = results(tmp_path)
        assert tuple(found["a", name]["round"] for name in ("blue", "red")) == rounds


def test_a_chosen_candidates_mask_becomes_the_edits_and_a_lost_one_is_made_again(
    tmp_path: Path,
) -> None:
    video = a_video(tmp_path / "a.mp4")
    mask = a_mask(tmp_path / "mask.mp4", 20)
    rows = [a_row(video, "red", "blue", video_id="a", mask=mask)]
    rows[0]["edits"][1]["mask"] = "gone.png"
    how = {"score": SCORE, "reconstruction": TRIES | {"start": 0.7}}
    assert run(tmp_path, rows, **how) == EXIT_SOME_FAILED
    found = results(tmp_path)
    assert found["a", "blue"]["error_code"] == "bad_mask"
    assert found["a", "red"]["mask"] == "masks/a/red.mp4"
    out = tmp_path / "out"
    before = {name: (out / name / "a/red.mp4").read_bytes() for name in ("edits", "masks")}
    assert not (out / "candidates").exists()
    assert app(["verify", str(out), "--decode"], standalone_mode=False) == EXIT_DONE
    (out / "masks/a/red.mp4").unlink()
    assert app(["verify", str(out)], standalone_mode=False) == EXIT_SOME_FAILED
    assert run(tmp_path, rows, **how) == EXIT_SOME_FAILED
    assert {name: (out / name / "a/red.mp4").read_bytes() for name in before} == before
    assert results(tmp_path)["a", "red"]["status"] == "ok"
