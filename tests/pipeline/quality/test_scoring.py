"""The scores of a pair: each kind whole or with its reason, and what stands for it."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.quality.fingerprints import WrongModel, fingerprints
from pipeline.quality.judge import http
from pipeline.quality.scoring import Pair, Scorer
from pipeline.scores import JudgeScores, Scores
from pipeline.settings import ScoreSettings
from tests.judge_server import GOOD, MODEL, judge_server, says
from tests.small_similarity_models import save_clip, save_dino


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ScoreSettings:
    root = tmp_path_factory.mktemp("models")
    return ScoreSettings(frames=True, clip=save_clip(root / "clip"), dino=save_dino(root / "dino"))


def pair(frames: int = 3, edit_frames: int = 3) -> Pair:
    drawn = torch.Generator().manual_seed(0)
    source, edit = (
        torch.randint(0, 256, (count, 48, 64, 3), dtype=torch.uint8, generator=drawn)
        for count in (frames, edit_frames)
    )
    return Pair(source, edit, None, "a red star", "a blue star")


def test_every_kind_that_is_asked_for_is_a_whole_record(settings: ScoreSettings) -> None:
    scorer = Scorer.load(settings)
    scores = scorer.score(pair())
    assert scores.judge is None
    assert scores.frames and scores.clip and scores.dino
    for record, kind in ((scores.frames, "frames"), (scores.clip, "clip"), (scores.dino, "dino")):
        assert record.fingerprint == scorer.fingerprints()[kind]
    assert (scores.clip.model, scores.dino.model) == (settings.clip, settings.dino)
    assert None not in (scores.clip.text, scores.clip.direction, scores.dino.structure)


def test_only_some_kinds_are_measured_again(settings: ScoreSettings) -> None:
    scores = Scorer.load(settings).score(pair(), ["clip", "judge"])
    assert scores.clip
    assert scores == Scores(clip=scores.clip)


def test_nothing_is_measured_by_default() -> None:
    scorer = Scorer.load(ScoreSettings())
    assert (scorer.fingerprints(), scorer.score(pair())) == ({}, Scores())


def test_what_cannot_be_compared_is_an_error_that_stays(settings: ScoreSettings) -> None:
    frames = Scorer.load(settings).score(pair(edit_frames=2), ["frames"]).frames
    assert frames and frames.error and frames.fingerprint  # another try finds the same
    assert "the edit has 2 frames" in frames.error


def test_a_measure_that_breaks_leaves_the_others_and_no_fingerprint(
    settings: ScoreSettings,
) -> None:
    scorer = Scorer.load(settings)
    assert scorer.clip
    scorer.clip.processor.do_resize = scorer.clip.processor.do_center_crop = False
    scores = scorer.score(pair())
    assert scores.frames and scores.dino and scores.clip
    assert (scores.frames.error, scores.dino.error) != (None, None)
    assert scores.dino.error is None
    assert scores.clip.error and scores.clip.error.startswith("ValueError: Input image size")
    assert scores.clip.fingerprint is None  # the next run tries again


def test_fingerprints_are_known_before_a_model_is_opened(
    settings: ScoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Scorer.load(settings).fingerprints()
    monkeypatch.setattr("safetensors.safe_open", None)
    assert fingerprints(settings) == expected
    other = ScoreSettings(clip=settings.dino)
    assert fingerprints(other)["clip"] != expected["clip"]


def test_a_model_of_another_kind_is_named(settings: ScoreSettings, tmp_path: Path) -> None:
    with pytest.raises(WrongModel, match=f"{settings.dino}: a model of type dinov2; expected clip"):
        Scorer.load(ScoreSettings(clip=settings.dino))
    with pytest.raises(WrongModel, match="there is no such folder"):
        fingerprints(ScoreSettings(dino=str(tmp_path / "none")))


def test_a_judge_that_is_away_takes_no_other_kind_with_it_and_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "FIRST_WAIT_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    scorer = Scorer.load(ScoreSettings(frames=True, judge=f"http://127.0.0.1:{port}/v1"))
    before = scorer.score(pair())
    assert before.frames and before.frames.fingerprint and before.frames.change is not None
    assert before.judge and before.judge.error and not before.judge.fingerprint
    assert scorer.lacking(before) == ["judge"]
    known = replace(before, judge=JudgeScores(follows=4, fingerprint="of an earlier run"))
    assert scorer.lacking(known) == [], "nobody can say that it is another judge's"
    scorer.judge.model.absence.missed_in_a_row = 0  # type: ignore[union-attr]
    with judge_server(says(GOOD), port=port):
        assert scorer.lacking(known) == ["judge"]
        after = scorer.score(pair(), scorer.lacking(before)).judge
    assert after and (after.model, after.follows, after.error) == (MODEL, 4, None)
    assert scorer.lacking(replace(before, judge=after)) == []
