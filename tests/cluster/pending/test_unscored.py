"""Which stored edits lack a score, found by columns."""

from dataclasses import asdict, replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.accept import Rules
from cluster.job import Job
from cluster.pending import unscored
from cluster.pending.rows import PendingRows
from cluster.pending.unscored import Unscored, find_unscored
from cluster.results.compaction import compact, current_rows
from cluster.results.schema import to_parquet
from cluster.selection.entries import Selection
from cluster.stages.score import with_scores
from pipeline.errors import Unreadable
from pipeline.scores import ClipScores, FrameScores, Scores
from pipeline.storage import Folder
from tests.cluster.pending.test_done import EVERYTHING, ROWS
from tests.pending_rows import answer, pending_of, with_rows
from tests.small_jobs import a_job

WANTED = {"frames": "frames-1", "clip": "clip-7"}
FRAMES = Scores(frames=FrameScores(change=0.5, fingerprint="frames-1"))
BOTH = replace(FRAMES, clip=ClipScores(text=0.2, model="c", fingerprint="clip-7"))


@pytest.fixture
def everything() -> PendingRows:
    """The rows of a job before its first run."""
    return pending_of(a_job(), ROWS)


@pytest.fixture
def job(everything: PendingRows) -> Job:
    """The same job, with all edits made."""
    answer(everything, run="r1")
    return everything.job


def found(job: Job, wanted: dict[str, str] = WANTED, **more: object) -> list[tuple[str, str]]:
    return ids(find_unscored(job, wanted, **more))  # type: ignore[arg-type]


def ids(rows: Unscored, most: int = 1000) -> list[tuple[str, str]]:
    names: list[tuple[str, str]] = []
    while (table := rows.take(most)) is not None:
        assert table.num_rows <= most
        names += zip(table["video_id"].to_pylist(), table["edit_id"].to_pylist(), strict=True)
    assert not rows
    return names


def score(job: Job, run: str, scores: Scores, *names: tuple[str, str]) -> None:
    """Have a run store edits again with their scores."""
    rows = find_unscored(job, WANTED, selection=Selection(list(names)))
    table = rows.take(1000)
    assert table is not None
    data = to_parquet(with_scores(table, [scores] * table.num_rows, Rules()))
    Folder(job.editing.output).write(f"results/{run}-000000.parquet", data)


def test_an_edit_lacks_a_score_until_all_wanted_ones_are_there(job: Job) -> None:
    assert found(job) == EVERYTHING
    assert found(job, {}) == []
    score(job, "r2", FRAMES, ("a", "red"), ("c", "blue"))
    assert found(job, {"frames": "frames-1"}) == [
        one for one in EVERYTHING if one not in (("a", "red"), ("c", "blue"))
    ]
    assert sorted(found(job)) == sorted(EVERYTHING)
    score(job, "r3", BOTH, ("a", "red"))
    assert ("a", "red") not in found(job)
    assert ("a", "red") in found(job, {"clip": "another model"})


def test_scores_of_an_edit_replace_its_row_and_no_row_of_a_later_run(
    job: Job, everything: PendingRows
) -> None:
    before = by_edit(job)
    stale = find_unscored(job, WANTED)
    score(job, "r2", BOTH, ("a", "red"))
    rows = by_edit(job)
    assert rows.keys() == before.keys()
    row = rows["a", "red"]
    assert row["scores"] == asdict(BOTH)
    changed = {"scores", "finished_at"}
    assert {name for name in row if row[name] != before["a", "red"][name]} == changed
    answer(everything, run="r3", takes=lambda *one: one == ("a", "red"))
    late = stale.take(1000)
    assert late is not None
    data = to_parquet(with_scores(late, [BOTH] * late.num_rows, Rules()))
    _output(job).write("results/r4-000000.parquet", data)
    rows = by_edit(job)
    assert (rows["a", "red"]["run"], rows["a", "red"]["scores"]["clip"]) == ("r3", None)
    assert rows["b", "red"]["scores"] == asdict(BOTH)
    compact(_output(job), "r9")
    assert by_edit(job) == rows


def test_edits_that_are_gone_or_asked_for_otherwise_have_nothing_to_be_scored(job: Job) -> None:
    rows = [replace_prompt(ROWS[0]), ROWS[2]]  # `b` is not in the manifest any more
    other = replace(job, files=with_rows(job, rows).files)
    assert found(other) == [one for one in EVERYTHING if one[0] == "c"]
    settings = replace(job.editing, seed=7)
    assert found(replace(job, editing=settings)) == []


def test_only_what_is_named_is_found_and_failed_edits_are_not(
    job: Job, everything: PendingRows
) -> None:
    assert found(job, selection=Selection([("a", None)])) == EVERYTHING[:2]
    answer(everything, "failed", run="r2", takes=lambda video, _: video == "a")
    assert found(job) == EVERYTHING[2:]


def test_rows_are_read_some_at_a_time_and_keep_the_columns_of_the_manifest(job: Job) -> None:
    rows = find_unscored(job, WANTED)
    assert len(rows) == len(EVERYTHING)
    first = rows.take(4)
    assert first is not None and first.num_rows == 4 and len(rows) == 2
    assert {"status", "fingerprint", "run"} <= {*first.column_names}
    assert len(ids(rows, 1)) == 2


def test_results_of_a_version_without_scores_are_read_on(job: Job) -> None:
    output = _output(job)
    name = next(iter(find_unscored(job, WANTED).rows))
    table = pq.read_table(pa.BufferReader(output.read(name)))
    older = table.drop_columns(["scores", "accepted", "rejected_for", "candidates"])
    output.write(name, to_parquet(older))
    assert found(job) == EVERYTHING
    score(job, "r2", BOTH, ("b", "red"))
    assert ("b", "red") not in found(job)


def by_edit(job: Job) -> dict[tuple[str, str], dict]:
    return {(row["video_id"], row["edit_id"]): row for row in current_rows(_output(job))}


def _output(job: Job) -> Folder:
    return Folder(job.editing.output)


def replace_prompt(row: dict) -> dict:
    return row | {"edits": [edit | {"prompt": "another"} for edit in row["edits"]]}


def test_rows_that_were_read_before_storage_failed_are_still_left(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(job, "r2", FRAMES, ("a", "red"))
    rows = find_unscored(job, WANTED)
    assert len(rows.rows) > 1
    count, last = len(rows), list(rows.rows)[-1]
    real = unscored.read_current

    def read(output: Folder, current: dict) -> object:
        if last in current:
            raise Unreadable("503")
        return real(output, current)

    with monkeypatch.context() as patched:
        patched.setattr(unscored, "read_current", read)
        with pytest.raises(Unreadable):
            rows.take(1000)
    assert len(rows) == count
    assert len(ids(rows)) == count
