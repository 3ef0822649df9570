"""A judge that transformers opens: tiny, but the whole way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.quality.fingerprints import WrongModel
from pipeline.quality.judge import Judge, fingerprint_of
from pipeline.quality.scoring import Pair
from pipeline.scores import JudgeScores
from pipeline.settings import ScoreSettings
from tests.judge_server import GOOD
from tests.small_judges import save_judge
from tests.small_similarity_models import save_clip


@pytest.fixture(scope="module")
def pair() -> Pair:
    frames = torch.randint(0, 256, (2, 5, 24, 40, 3), generator=torch.manual_seed(0))
    source, edit = frames.to(torch.uint8)
    return Pair(source=source, edit=edit, prompt="a red ball", source_prompt="a ball")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_judge(tmp_path_factory.mktemp("judge"), GOOD)


def test_a_model_that_answers_as_asked_scores_a_pair(good: str, pair: Pair) -> None:
    judge = Judge.load(ScoreSettings(judge=good))
    assert judge.score(pair) == JudgeScores(
        follows=4,
        quality=3,
        preserves=2,
        reason="the ball is red",
        model=good,
        fingerprint=judge.fingerprint(),
    )


def test_what_random_weights_say_is_row_data(tmp_path: Path, pair: Pair) -> None:
    judge = Judge.load(ScoreSettings(judge=save_judge(tmp_path), judge_frames=1))
    scores = judge.score(pair)
    assert scores.error
    assert scores.error.startswith("judge: no answer of 2 could be used; the last: it is ")
    assert scores.follows is None
    assert scores.fingerprint == judge.fingerprint()  # the same would come again


def test_an_answer_that_takes_too_long_is_late_and_may_be_asked_for_again(
    tmp_path: Path, pair: Pair
) -> None:
    folder = save_judge(tmp_path)
    scores = Judge.load(ScoreSettings(judge=folder, judge_deadline_s=1e-3)).score(pair)
    assert scores == JudgeScores(
        model=folder,
        error=f"judge {folder}: no answer in 0.001 s; a higher score.judge_deadline_s or fewer "
        "score.judge_frames help",
    )


def test_the_fingerprint_is_of_the_weights_and_the_frames_not_of_the_place(
    good: str, tmp_path: Path
) -> None:
    first = fingerprint_of(ScoreSettings(judge=good))
    assert first == fingerprint_of(ScoreSettings(judge=save_judge(tmp_path / "moved", GOOD)))
    assert first == Judge.load(ScoreSettings(judge=good)).fingerprint()
    other = save_judge(tmp_path / "other", GOOD, seed=1)
    assert first != fingerprint_of(ScoreSettings(judge=other))
    assert first != fingerprint_of(ScoreSettings(judge=good, judge_frames=5))


def test_a_folder_without_such_a_model_is_refused_at_once(tmp_path: Path) -> None:
    clip = save_clip(tmp_path / "clip")
    (tmp_path / "empty").mkdir()
    for judge, wrong in (
        (clip, "a model of type clip; expected one that transformers opens with AutoModelForImage"),
        (str(tmp_path / "nowhere"), "there is no such folder"),
        (str(tmp_path / "empty"), "not a model that transformers can open"),
    ):
        with pytest.raises(WrongModel, match=wrong):
            Judge.load(ScoreSettings(judge=judge))


def test_weights_that_are_missing_are_row_data_and_looked_for_once(
    tmp_path: Path, pair: Pair
) -> None:
    folder = save_judge(tmp_path, GOOD)
    (tmp_path / "model.safetensors").rename(tmp_path / "elsewhere")
    judge = Judge.load(ScoreSettings(judge=folder))
    first = judge.score(pair)
    assert first.error
    assert first.error.startswith(f"judge {folder}: ")
    assert first.fingerprint is None
    (tmp_path / "elsewhere").rename(tmp_path / "model.safetensors")
    assert judge.score(pair) == first
