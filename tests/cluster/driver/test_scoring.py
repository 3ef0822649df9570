"""The scoring of a run, without Ray: which rows wait, what comes back, and what is given up.

The graph is a list of blocks here; `tests/jobs/test_run_scores.py` has the real one.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from cluster.driver import scoring
from cluster.driver.graph import longest_block_s
from cluster.driver.lost import LostBlocks
from cluster.driver.scoring import Scoring
from cluster.job import Job
from cluster.layout.placement import Placement
from cluster.layout.scorers import Scorers
from cluster.results.schema import SCHEMA
from cluster.stages.score import GIVEN_BACK, NOT_LOADED, given_back, with_scores
from pipeline.scores import FrameScores, Scores
from pipeline.settings import Reconstruction, ScoreSettings, Variation
from tests.cluster.test_dataflow import a_block
from tests.small_jobs import a_job

PLACEMENT = Placement("cpu", "shared", (), scorers=Scorers(2))
GOOD = Scores(frames=FrameScores(change=0.5, fingerprint="f"))
BAD = Scores(frames=FrameScores(error="no such file"))
Graph = Callable[[pa.Table], Iterator[pa.Table]]


class Rows:
    def __init__(self, blocks: Iterator[pa.Table]) -> None:
        self.blocks = blocks

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        return self.blocks


def scored(table: pa.Table, scores: Scores = GOOD, why: str | None = None) -> pa.Table:
    from cluster.accept import Rules

    block = given_back(with_scores(table, [scores] * table.num_rows, Rules()), "")
    reasons = pa.array([why] * table.num_rows, pa.string())
    return block.set_column(block.column_names.index(GIVEN_BACK), GIVEN_BACK, reasons)


def edits(*names: str, video: str = "v") -> pa.Table:
    table = a_block(*((name, None, None) for name in names), video=video)
    times = pa.array([0] * len(names), SCHEMA.field("finished_at").type)
    place = table.column_names.index("finished_at")
    return table.set_column(place, SCHEMA.field("finished_at"), times)


@pytest.fixture
def job() -> Job:
    return replace(a_job(), score=ScoreSettings(frames=True))


@pytest.fixture
def waves(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The edits of each wave that began."""
    monkeypatch.setattr(scoring, "PAUSE_S", 0.0)
    return []


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch, waves: list[list[str]]) -> Callable[[Graph], None]:
    def use(made: Graph) -> None:
        def graph(_: Job, table: pa.Table, __: Placement) -> Rows:
            waves.append(table["edit_id"].to_pylist())
            return Rows(made(table))

        monkeypatch.setattr(scoring, "scoring_graph", graph)

    return use


def to_the_end(one: Scoring) -> list[str]:
    """The edits that get scores, in order."""
    found: list[str] = []
    until = time.monotonic() + 20
    while not one.done:
        assert time.monotonic() < until
        for table in one.tick(PLACEMENT, last=True):
            found += table["edit_id"].to_pylist()
    return found


def counts(one: Scoring) -> tuple[int, ...]:
    known = one.counts
    assert known
    return known.edits, known.scored, known.with_errors, known.missing


def test_rows_are_scored_once_whatever_ray_runs_twice(job: Job, graph: Any, waves: Any) -> None:
    graph(lambda table: iter([scored(table), scored(table.slice(0, 1), BAD)]))
    one = Scoring(job)
    one.made(edits("a", "b"))
    one.made(a_block(("c", "deadline", "late")))
    assert to_the_end(one) == ["a", "b"]
    assert waves == [["a", "b"]], "an edit that failed has nothing to be scored"
    assert counts(one) == (2, 2, 0, 0)


def test_a_wave_waits_for_enough_rows_or_for_long_or_for_the_last(
    job: Job, graph: Any, waves: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def made(table: pa.Table) -> Iterator[pa.Table]:
        go_on.wait(20)
        yield scored(table)

    graph(made)
    monkeypatch.setattr(scoring, "ENOUGH", 3)
    monkeypatch.setattr(scoring, "ROWS", 4)
    one = Scoring(job)
    one.made(edits("a", "b"))
    assert not list(one.tick(PLACEMENT)) and one.reserved() == Scorers()
    one.made(edits("c", "d", "e"))
    assert not list(one.tick(PLACEMENT, hold=True)) and one.reserved() == Scorers()
    assert not list(one.tick(PLACEMENT)) and one.reserved() == PLACEMENT.scorers
    go_on.set()
    assert to_the_end(one) == ["a", "b", "c", "d", "e"]
    assert [len(wave) for wave in waves] == [4, 1]
    monkeypatch.setattr(scoring, "GATHER_S", 0.0)
    one.made(edits("f"))
    list(one.tick(PLACEMENT))
    assert one.reserved() == PLACEMENT.scorers, "it has waited for long"
    assert to_the_end(one) == ["f"]
    assert one.reserved() == Scorers()


def test_rows_that_are_lost_are_tried_again_and_not_without_end(
    job: Job, graph: Any, waves: Any
) -> None:
    lost = LostBlocks()
    lost.of_scoring = "its process ran out of memory"

    def made(table: pa.Table) -> Iterator[pa.Table]:
        yield from (scored(table.slice(n, 1)) for n in range(1, table.num_rows))

    graph(made)
    one = Scoring(job, lost=lost)
    one.made(edits("poison", "a", "b"))
    one.made(edits("c"))
    assert to_the_end(one) == ["a", "b", "c"]
    assert waves == [["poison", "a", "b", "c"], ["poison"], ["poison"]]
    assert counts(one) == (4, 3, 0, 1)
    assert one.counts and one.counts.trouble == lost.of_scoring


def test_storage_that_is_away_gives_rows_back_and_they_are_scored_later(
    job: Job, graph: Any, waves: Any
) -> None:
    graph(lambda table: iter([scored(table, why="503" if len(waves) < 3 else None)]))
    one = Scoring(job)
    one.made(edits("a"))
    assert to_the_end(one) == ["a"]
    assert (len(waves), counts(one)) == (3, (1, 1, 0, 0))


def test_where_no_model_loads_scoring_ends_and_later_edits_are_counted_as_missing(
    job: Job, graph: Any, waves: Any
) -> None:
    graph(lambda table: iter([given_back(table, f"{NOT_LOADED}no room")]))
    one = Scoring(job)
    one.made(edits("a", "b"))
    assert to_the_end(one) == []
    one.made(edits("c"))
    assert one.done and len(waves) == 1
    assert counts(one) == (3, 0, 0, 3)
    assert one.counts and one.counts.trouble == f"{NOT_LOADED}no room"


@pytest.mark.parametrize("failure", [RuntimeError("Ray has ended it"), None])
def test_waves_without_a_score_end_the_scoring(
    failure: Exception | None, job: Job, graph: Any, waves: Any
) -> None:
    def made(table: pa.Table) -> Iterator[pa.Table]:
        yield from ()
        if failure:
            raise failure

    graph(made)
    one = Scoring(job)
    one.made(edits("a"))
    assert to_the_end(one) == []
    assert len(waves) == 3 and counts(one) == (1, 0, 0, 1)
    assert one.counts and ("Ray has ended it" in one.counts.trouble) == bool(failure)


def test_a_wave_that_stands_still_is_left_after_the_stall_deadline(
    job: Job, graph: Any, waves: Any
) -> None:
    hang = threading.Event()

    def made(table: pa.Table) -> Iterator[pa.Table]:
        yield scored(table.slice(0, 1))
        hang.wait(20)

    graph(made)
    job = replace(job, cluster=replace(job.cluster, stall_deadline_s=0.2))
    one = Scoring(job)
    one.made(edits("a", "b"))
    list(one.tick(PLACEMENT, last=True))
    until = time.monotonic() + 0.5
    found = 0
    while time.monotonic() < until:  # groups are at work again: it holds up nobody
        found += sum(table.num_rows for table in one.tick(PLACEMENT))
    assert found == 1 and not one.done
    assert to_the_end(one) == []
    assert counts(one) == (2, 1, 0, 1)
    assert one.counts and "cluster.stall_deadline_s" in one.counts.trouble
    hang.set()


def test_a_judge_has_the_time_that_its_deadline_gives_it(job: Job) -> None:
    assert longest_block_s(job) == 0
    judged = replace(job, score=ScoreSettings(judge="http://h/v1", judge_deadline_s=100.0))
    assert longest_block_s(judged) == 2 * 100.0, "it is asked twice about a pair"
    how = Reconstruction(candidates=(Variation(noise=0.5),) * 3)
    tried = replace(judged, editing=replace(judged.editing, reconstruction=how))
    assert longest_block_s(tried) == 4 * 2 * 100.0
