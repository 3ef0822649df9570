"""The rules of `accept`: read from text, and what they say of rows."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, replace

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.accept import OPERATORS, Rules, WrongRule, measured_kinds
from cluster.results.schema import SCHEMA
from pipeline.records import EditResult, Metrics
from pipeline.scores import ClipScores, FrameScores, JudgeScores, Scores
from pipeline.settings import ScoreSettings

ROW = EditResult(
    video_id="clip-1",
    edit_id="red",
    gpu_seconds=12.5,
    metrics=Metrics(flicker=0.02),
    scores=Scores(
        frames=FrameScores(background_psnr_db=31.5, flicker=0.001),
        clip=ClipScores(text=0.3, frames=0.97),
        judge=JudgeScores(error="the judge answered in prose"),
    ),
)


def verdict(*rules: str, row: EditResult = ROW) -> tuple[bool | None, tuple[str, ...]]:
    return Rules.parse(rules).verdict(asdict(row))


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("scores.frames.background_psnr_db", "scores.frames.background_psnr_db"),
        ("frames.background_psnr_db", "scores.frames.background_psnr_db"),
        ("background_psnr_db", "scores.frames.background_psnr_db"),
        ("clip_direction", "scores.clip.direction"),
        ("scores_clip_direction", "scores.clip.direction"),
        ("direction", "scores.clip.direction"),
        ("judge.follows", "scores.judge.follows"),
        ("frames_flicker", "scores.frames.flicker"),
        ("metrics_flicker", "metrics.flicker"),
        ("round_trip_db", "metrics.round_trip_db"),
        ("frames", "frames"),
        ("clip_frames", "scores.clip.frames"),
        ("gpu_seconds", "gpu_seconds"),
        ("timings.reconstruct", "timings.reconstruct"),
    ],
)
def test_a_number_has_several_names(name: str, column: str) -> None:
    assert Rules.parse([f"{name} > 0"]).rules[0].column == column


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "expected a name, one of >= <= > < == !=, and a number"),
        ("judge.follows", "expected a name, one of"),
        ("judge.follow >= 3", "did you mean 'judge.follows'?"),
        ("backgroud_psnr_db > 3", "did you mean 'background_psnr_db'?"),
        ("beauty > 3", "no number 'beauty' in the results; docs/scores.md lists"),
        ("flicker < 1", "'flicker' may be metrics.flicker or frames.flicker: write which"),
        ("judge.follows = 3", "'=' compares nothing; did you mean '=='?"),
        ("judge.follows => 3", "did you mean '>='?"),
        ("judge.follows =! 3", "expected >= <= > < == or !="),
        ("1 < judge.follows < 4", "one comparison a rule"),
        ("judge.follows > 2 and clip_text > 0", "one comparison a rule"),
        ("30 <= background_psnr_db", "the name comes first: `background_psnr_db >= 30`"),
        ("judge.follows >= nan", "'nan' is no number"),
        ("judge.follows < inf", "'inf' is no number"),
        ("judge.follows < 1e999", "'1e999' is no number"),
        ("judge.follows >= three", "'three' is no number; expected one such as 30 or 0.1"),
        ("judge.follows >=", "no number after >="),
        (">= 3", "no name before >="),
        ("background_psnr_db >= 30 dB", "leave away what follows 30"),
        ("edit/one > 3", "'edit/one' is no name"),
        ("prompt == 3", "'prompt' is no number, and rules compare numbers"),
        ("source > 0", "'source' is no number"),
        ("judge.reason == 3", "'judge.reason' is no number"),
        ("accepted == 1", "'accepted' is no number"),
    ],
)
def test_a_rule_that_cannot_be_read_says_why(text: str, why: str) -> None:
    with pytest.raises(WrongRule, match=re.escape(f"rule {text!r}: ")) as error:
        Rules.parse([text])
    assert why in str(error.value)


def test_all_wrong_rules_are_named_at_once() -> None:
    with pytest.raises(WrongRule) as error:
        Rules.parse(["judge.follows >= 3", "a > 1", "judge.follows = 3"])
    assert len(str(error.value).splitlines()) == 2


def test_a_rule_of_a_kind_that_is_not_measured_is_refused() -> None:
    kinds = measured_kinds(ScoreSettings(frames=True, clip="some/clip"))
    assert kinds == ("frames", "clip")
    Rules.parse(["frames_flicker < 1", "clip.text > 0", "metrics.flicker < 1"], kinds=kinds)
    with pytest.raises(WrongRule, match=re.escape("turn on score.judge")):
        Rules.parse(["judge.follows >= 3"], kinds=kinds)


def test_a_rule_may_name_a_number_that_came_with_the_manifest() -> None:
    rules = Rules.parse(["aesthetic >= 5"], more=["aesthetic"])
    assert rules.verdict({"aesthetic": 5.5}) == (True, ())
    assert rules.verdict({"aesthetic": 4}) == (False, ("aesthetic >= 5",))
    assert rules.verdict({"aesthetic": "high"}) == (False, ("aesthetic >= 5: no score",))
    assert rules.verdict({}) == (False, ("aesthetic >= 5: no score",))


def test_an_edit_is_accepted_where_every_rule_holds() -> None:
    assert verdict("background_psnr_db >= 30", "clip_text>.2", "gpu_seconds < 20") == (True, ())
    assert verdict("background_psnr_db  >=  32", "clip_text > 0.3", "gpu_seconds < 20") == (
        False,
        ("background_psnr_db >= 32", "clip_text > 0.3"),
    )


def test_a_missing_score_rejects_and_says_why() -> None:
    assert verdict("judge.follows >= 3") == (False, ("judge.follows >= 3: no score",))
    assert verdict("dino.structure < 1") == (False, ("dino.structure < 1: not measured",))
    assert verdict("round_trip_db != 1") == (False, ("round_trip_db != 1: no score",))
    without_a_number = replace(ROW, scores=Scores(FrameScores(change=math.nan)))
    assert verdict("change != 1", row=without_a_number)[1] == ("change != 1: no score",)


def test_there_is_no_verdict_without_rules_or_of_an_edit_that_was_not_made() -> None:
    assert verdict() == (None, ())
    assert verdict("gpu_seconds < 20", row=replace(ROW, status="failed")) == (None, ())


def test_scores_that_an_earlier_version_wrote_count_too() -> None:
    rules = Rules.parse(["clip.text > 0.2"])
    assert rules.verdict({"clip_text": 0.3, "scores": None}) == (True, ())
    table = pa.table({"clip_text": [0.3, 0.1, None]})
    assert rules.verdicts(table).columns()[1].to_pylist() == [
        [],
        ["clip.text > 0.2"],
        ["clip.text > 0.2: not measured"],
    ]


SOME = st.none() | st.floats(-4, 4) | st.just(math.nan)
WHOLE = st.none() | st.integers(-4, 4)
SCORES = st.builds(
    Scores,
    frames=st.none() | st.builds(FrameScores, change=SOME, flicker=SOME),
    clip=st.none() | st.builds(ClipScores, text=SOME),
    judge=st.none() | st.builds(JudgeScores, follows=WHOLE),
)
RESULTS = st.builds(
    EditResult,
    status=st.sampled_from(["ok", "ok", "failed"]),
    scores=SCORES,
    metrics=st.builds(Metrics, flicker=SOME),
    attempts=st.integers(0, 4),
)
NAMES = ("change", "frames.flicker", "clip.text", "judge.follows", "metrics.flicker", "attempts")
RULES = st.lists(
    st.builds(
        lambda name, op, number: f"{name} {op} {number:f}",
        st.sampled_from(NAMES),
        st.sampled_from(sorted(OPERATORS)),
        st.integers(-4, 4) | st.floats(-4, 4),
    ),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(RESULTS, max_size=6), RULES)
def test_many_rows_at_once_get_the_verdicts_of_each_alone(
    rows: list[EditResult], texts: list[str]
) -> None:
    rules = Rules.parse(texts)
    plain = [asdict(row) for row in rows]
    table = pa.Table.from_pylist(plain, SCHEMA)
    accepted, rejected_for = rules.verdicts(table).columns()
    alone = [rules.verdict(row) for row in plain]
    assert accepted.to_pylist() == [one for one, _ in alone]
    assert [tuple(reasons) for reasons in rejected_for.to_pylist()] == [why for _, why in alone]
    assert accepted.type == SCHEMA.field("accepted").type
    assert rejected_for.type == SCHEMA.field("rejected_for").type


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30) | st.text("abc._<>=!0123456789e -", max_size=30))
def test_any_text_is_a_rule_or_is_refused_with_a_reason(text: str) -> None:
    try:
        rule = Rules.parse([text]).rules[0]
    except WrongRule as error:
        assert str(error).startswith(f"rule {text!r}: ")
    else:
        assert math.isfinite(rule.number)
        assert Rules.parse([rule.text]).rules[0] == rule
