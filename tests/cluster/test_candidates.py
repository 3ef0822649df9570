"""Choosing the best of an edit's candidates: a row with scores in, the row with the edit out."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest

from cluster.accept import Rules, WrongRule
from cluster.candidates.choice import (
    Ranking,
    choose,
    files_to_score,
    joined,
    known_scores,
    with_scores,
)
from cluster.candidates.made import candidate_output, gathered
from cluster.driver.rounds import Rounds
from cluster.results.schema import SCHEMA
from pipeline.errors import ErrorCode
from pipeline.records import Candidate, EditResult, Forwards, Metrics, Timings
from pipeline.scores import FrameScores, JudgeScores, Scores
from pipeline.settings import Reconstruction, ScoreSettings, Variation
from tests.small_jobs import a_job

EDIT = "edits/v/e.mp4"


def scored(db: float | None, change: float = 0.5) -> Scores:
    return Scores(FrameScores(background_psnr_db=db, change=change, fingerprint="f"))


def candidate(number: int, scores: Scores, **changes: Any) -> Candidate:
    made = Candidate(
        number,
        output=candidate_output("v", "e", number),
        size_bytes=100 + number,
        metrics=Metrics(flicker=number / 10),
        scores=scores,
    )
    return replace(made, **changes)


def a_row(*scores: Scores, **changes: Any) -> EditResult:
    made = tuple(candidate(number, one) for number, one in enumerate(scores))
    row = EditResult("v", "e", output=made[0].output, size_bytes=100, candidates=made)
    return replace(row, **changes)


def ranking(name: str = "background_psnr_db", *rules: str, **changes: Any) -> Ranking:
    score = Rules.parse([f"{name.removeprefix('-')} >= 0"]).rules[0]
    sign = -1 if name.startswith("-") else 1
    return replace(Ranking(score, sign, Rules.parse(rules)), **changes)


def test_the_best_candidate_becomes_the_edit() -> None:
    choice = choose(a_row(scored(30.0), scored(33.0), scored(31.0)), ranking())
    row = choice.row
    assert choice.copies == (("candidates/v/e/1.mp4", EDIT),)
    assert (row.output, row.size_bytes, row.candidate, row.mask) == (EDIT, 101, 1, None)
    assert row.scores == scored(33.0)
    assert row.metrics == Metrics(flicker=0.1)
    assert [one.output for one in row.candidates] == [None] * 3
    assert [one.scores for one in row.candidates] == [scored(30.0), scored(33.0), scored(31.0)]


def test_with_a_minus_the_least_is_best() -> None:
    row = a_row(scored(30.0, 0.3), scored(33.0, 0.4), scored(31.0, 0.2))
    assert choose(row, ranking("-change")).row.candidate == 2


def test_of_equal_candidates_the_edit_itself_stays() -> None:
    assert choose(a_row(scored(30.0), scored(30.0)), ranking()).row.candidate == 0


def test_a_candidate_without_the_score_comes_last_and_a_failed_one_never() -> None:
    row = a_row(scored(None), scored(-3.0), scored(99.0))
    last = replace(row.candidates[2], output=None, error_code=ErrorCode.NOT_FINITE)
    row = replace(row, candidates=(*row.candidates[:2], last))
    assert choose(row, ranking()).row.candidate == 1
    assert files_to_score(row).keys() == {0, 1}


def test_without_any_score_the_first_candidate_that_was_made_is_the_edit() -> None:
    row = a_row(Scores(), Scores(), Scores())
    assert choose(row, ranking()).row.candidate == 0
    first = replace(row.candidates[0], output=None, error_code=ErrorCode.NOT_FINITE)
    row = replace(
        row, output=candidate_output("v", "e", 1), candidates=(first, *row.candidates[1:])
    )
    choice = choose(row, ranking())
    assert choice.row.candidate == 1
    assert choice.copies == (("candidates/v/e/1.mp4", EDIT),)


def test_an_accepted_candidate_goes_before_a_rejected_one_of_a_better_score() -> None:
    row = a_row(scored(30.0, 0.5), scored(40.0, 0.0), scored(32.0, 0.6))
    choice = choose(row, ranking("background_psnr_db", "change >= 0.1"))
    assert (choice.row.candidate, choice.row.accepted) == (2, True)
    choice = choose(row, ranking("background_psnr_db", "change >= 0.9"))
    assert (choice.row.candidate, choice.row.accepted) == (1, False)
    assert choice.row.rejected_for == ("change >= 0.9",)


def test_kept_candidates_stay_in_the_row() -> None:
    row = choose(a_row(scored(30.0), scored(33.0)), ranking(keep=True)).row
    assert [one.output for one in row.candidates] == [candidate_output("v", "e", n) for n in (0, 1)]


def test_the_row_has_the_seed_and_the_guidance_scale_of_the_best_candidate() -> None:
    how = Reconstruction(candidates=(Variation(noise=0.5), Variation(guidance_scale=8.0)))
    made = [
        replace(a_row(scored(0.0)), seed=10 + n, guidance_scale=scale, candidate=n)
        for n, scale in enumerate((2.0, 2.0, 8.0))
    ]
    (row,) = gathered(made, how)
    for best, expected in ((2, (12, 8.0)), (1, (11, 2.0)), (0, (10, 2.0))):
        scores = {n: scored(40.0 if n == best else 30.0) for n in range(3)}
        row = choose(with_scores(row, scores), ranking(keep=True)).row
        assert (row.candidate, row.seed, row.guidance_scale) == (best, *expected)
    worse = replace(row, candidates=(candidate(4, scored(1.0), changes='{"seed": 14}'),), seed=14)
    assert joined(row, worse).seed == 10


def test_a_mask_goes_with_its_candidate() -> None:
    row = a_row(scored(30.0), scored(33.0))
    masked = replace(row.candidates[1], mask="candidates/v/e/1.mask.mp4")
    choice = choose(replace(row, candidates=(row.candidates[0], masked)), ranking())
    assert choice.row.mask == "masks/v/e.mp4"
    assert choice.copies[1] == ("candidates/v/e/1.mask.mp4", "masks/v/e.mp4")


def test_to_choose_again_changes_nothing_and_copies_nothing() -> None:
    for keep in (False, True):
        once = choose(a_row(scored(30.0), scored(33.0)), ranking(keep=keep)).row
        assert choose(once, ranking(keep=keep)).row == once
        assert choose(once, ranking(keep=keep)).copies == ()


def test_an_edit_whose_candidates_were_dropped_is_scored_anew_itself() -> None:
    once = choose(a_row(scored(30.0), scored(33.0)), ranking()).row
    assert files_to_score(once) == {1: (EDIT, None)}
    again = choose(with_scores(once, {1: scored(20.0)}), ranking()).row
    assert (again.candidate, again.output, again.scores) == (1, EDIT, scored(20.0))


def test_an_edit_without_candidates_is_scored_as_it_is() -> None:
    row = EditResult("v", "e", output=EDIT)
    assert files_to_score(row) == {0: (EDIT, None)}
    assert with_scores(row, {0: scored(3.0)}).scores == scored(3.0)


# Rounds


TWO = ranking("background_psnr_db", "background_psnr_db >= 35", rounds=2)


def test_a_rejected_edit_with_a_round_left_is_not_copied_and_keeps_its_best() -> None:
    choice = choose(a_row(scored(30.0), scored(33.0)), TWO)
    assert (choice.row.accepted, choice.row.candidate, choice.copies) == (False, 1, ())
    assert choice.row.output == candidate_output("v", "e", 1)
    assert [one.output for one in choice.row.candidates] == [None, choice.row.output]


@pytest.mark.parametrize(("db", "number"), [(36.0, 3), (31.0, 1)])
def test_a_later_round_replaces_an_edit_by_a_better_one_only(db: float, number: int) -> None:
    before = choose(a_row(scored(30.0), scored(33.0)), TWO).row
    new = candidate(3, scored(db))
    made = EditResult("v", "e", output=new.output, round=1, candidates=(new,), run="later")
    row = joined(before, made)
    assert (row.output, row.size_bytes, row.run) == (before.output, before.size_bytes, "later")
    assert row.scores == Scores()  # it waits to be scored
    assert files_to_score(row).keys() == {1, 3}
    choice = choose(row, TWO)
    assert (choice.row.candidate, choice.row.round, choice.row.output) == (number, 1, EDIT)
    assert choice.copies == ((candidate_output("v", "e", number), EDIT),)


def test_a_later_round_that_fails_leaves_the_edit_as_it_was() -> None:
    before = choose(a_row(scored(30.0), scored(33.0)), TWO).row
    made = EditResult("v", "e", status="failed", error_code=ErrorCode.NOT_FINITE, round=1)
    row = choose(joined(before, made), TWO).row
    assert (row.status, row.error_code, row.candidate, row.output) == ("ok", None, 1, EDIT)


def test_an_edit_that_was_sure_before_gets_more_rounds() -> None:
    before = choose(a_row(scored(30.0), scored(33.0)), replace(TWO, rounds=1)).row
    new = candidate(3, scored(31.0))
    row = joined(before, EditResult("v", "e", round=1, candidates=(new,)))
    assert files_to_score(row) == {1: (EDIT, None), 3: (new.output, None)}
    choice = choose(row, TWO)
    assert (choice.row.candidate, choice.row.output, choice.copies) == (1, EDIT, ())


# Refused before a run


@pytest.mark.parametrize(
    ("candidates", "score", "accept", "rounds", "message"),
    [
        (1, {}, (), 1, "score.rank_by names none: add one, such as"),
        (0, {"rank_by": "change"}, (), 1, "reconstruction.candidates is empty"),
        (1, {"rank_by": "chnge", "frames": True}, (), 1, "did you mean 'change'"),
        (1, {"rank_by": "-clip.text", "frames": True}, (), 1, "turn on score.clip"),
        (1, {"rank_by": "change", "frames": True}, (), 2, "no rules in accept"),
    ],
)
def test_what_cannot_be_chosen_is_refused(
    candidates: int, score: Any, accept: tuple[str, ...], rounds: int, message: str
) -> None:
    how = Reconstruction(candidates=(Variation(noise=0.5),) * candidates)
    how = replace(how, until_accepted=rounds) if candidates else how
    job = a_job()
    job = replace(job, editing=replace(job.editing, reconstruction=how))
    with pytest.raises(WrongRule) as error:
        Ranking.of(replace(job, score=ScoreSettings(**score), accept=accept))
    assert message in str(error.value)


def test_a_job_ranks_by_its_score() -> None:
    job = a_job()
    how = Reconstruction(candidates=(Variation(noise=0.5),), keep_candidates=True, until_accepted=3)
    job = replace(job, editing=replace(job.editing, reconstruction=how))
    score = ScoreSettings(frames=True, rank_by="-frames.flicker")
    files: Any = SimpleNamespace(schema=pa.schema([]))
    made = Ranking.of(replace(job, score=score, accept=("change > 0.1",), files=files))
    assert made is not None
    assert (made.score.column, made.sign) == ("scores.frames.flicker", -1)
    assert (made.keep, made.rounds) == (True, 3)
    assert Ranking.of(a_job()) is None


# From what ranks made


def test_what_ranks_made_of_each_candidate_becomes_one_row_of_the_edit() -> None:
    how = Reconstruction(candidates=(Variation(noise=0.5), Variation(start=0.9)))

    def made(edit: str, number: int, **changes: Any) -> EditResult:
        return EditResult(
            edit_id=edit,
            seed=number,
            candidate=number,
            output=candidate_output("v", edit, number),
            size_bytes=number,
            forwards=Forwards(plain=1.0, injected=2.0),
            timings=Timings(decode=0.5),
            **changes,
        )

    lost = replace(
        made("b", 0), output=None, size_bytes=None, error_code=ErrorCode.NOT_FINITE, error="why"
    )
    all_lost = [replace(lost, edit_id="c", candidate=number) for number in range(3)]
    both = [*(made("a", n) for n in range(3)), lost, made("b", 1), made("b", 2), *all_lost]
    a, b, c = gathered(both, how)
    assert (a.output, a.candidate, a.size_bytes) == (candidate_output("v", "a", 0), 0, 0)
    assert a.forwards == Forwards(plain=3.0, injected=6.0)
    assert a.timings.decode == 1.5
    changes = [json.loads(one.changes) for one in a.candidates]
    assert changes == [{"seed": 0}, {"noise": 0.5, "seed": 1}, {"start": 0.9, "seed": 2}]
    assert (b.output, b.candidate, b.error_code) == (candidate_output("v", "b", 1), 1, None)
    assert (b.candidates[0].error_code, b.candidates[0].error) == (ErrorCode.NOT_FINITE, "why")
    assert (c.output, c.error_code, len(c.candidates)) == (None, ErrorCode.NOT_FINITE, 3)
    later = gathered([made("a", 3 + 1)], how)[0]
    assert (later.round, later.candidate) == (1, 4)
    assert json.loads(later.candidates[0].changes)["noise"] == 0.5
    assert gathered([made("a", 0)], Reconstruction()) == [made("a", 0)]


AWAY = FrameScores(error="the server is away")


def test_nothing_is_chosen_while_a_candidate_waits_for_its_score() -> None:
    row = a_row(scored(30.0), scored(33.0), Scores(AWAY))
    choice = choose(row, ranking())
    assert choice.copies == ()
    assert replace(choice.row, scores=row.scores) == row, "no candidate is dropped"
    assert choice.row.scores == Scores(AWAY), "so the next run looks at it again"
    assert known_scores(choice.row) == {0: scored(30.0), 1: scored(33.0), 2: Scores(AWAY)}
    again = with_scores(choice.row, known_scores(choice.row) | {2: scored(35.0)})
    assert choose(again, ranking()).row.candidate == 2
    lasting = Scores(replace(AWAY, fingerprint="f"))
    assert choose(a_row(scored(30.0), lasting), ranking()).row.output == EDIT
    other = Scores(scored(30.0).frames, judge=JudgeScores(error="away"))
    assert choose(a_row(scored(30.0), other), ranking()).row.output == EDIT, "nobody asked for it"


def test_a_score_that_is_missing_is_no_reason_for_a_further_round() -> None:
    how = Reconstruction(candidates=(Variation(noise=0.5),), until_accepted=2)
    job = a_job()
    job = replace(
        job,
        editing=replace(job.editing, reconstruction=how),
        score=ScoreSettings(frames=True, rank_by="frames.change"),
        accept=("background_psnr_db > 90",),
    )
    job = replace(job, files=SimpleNamespace(schema=pa.schema([])))
    rejected = a_row(scored(30.0), scored(31.0), accepted=False)
    rounds = Rounds(job, cast(Any, None))
    for scores, expected in ((scored(30.0), 1), (Scores(AWAY), 0), (Scores(), 0)):
        row = asdict(replace(rejected, scores=scores))
        rounds.saw(pa.Table.from_pylist([row], schema=SCHEMA))
        assert len(rounds) == expected
