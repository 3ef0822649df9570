"""Which edits a run leaves out: what an earlier run has answered under the same settings."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cluster.job import Job
from cluster.pending.done import (
    DONE,
    NOT_TAKEN,
    PENDING,
    QUARANTINED,
    Answered,
    find_answered,
)
from cluster.pending.rows import PendingRows
from cluster.results.failed import FailedOf
from cluster.selection.entries import Selection
from cluster.stages.blocks import work_of
from pipeline.errors import ErrorCode
from tests.cluster.test_stages import a_row
from tests.pending_rows import answer, pending_of, table_of, with_rows
from tests.small_jobs import a_job

ROWS = [a_row("a", "red", "blue"), a_row("b", "red"), a_row("c", "red", "blue", "green")]
EVERYTHING = [("a", "red"), ("a", "blue"), ("b", "red")] + [
    ("c", prompt) for prompt in ("red", "blue", "green")
]


def left(rows: PendingRows) -> list[tuple[str, str]]:
    """The ids of the edits that groups get."""
    works = [work for checked in rows for work in work_of(checked.work)]
    return [(str(work.video_id), str(edit.edit_id)) for work in works for edit in work.edits]


def kinds(job: Job, *, retry: bool = False) -> list[list[int]]:
    """What is found of each row's edits."""
    rows = pending_of(job, ROWS, retry_quarantined=retry)
    return [rows.answered.of_row(row).tolist() for row in range(len(ROWS))]


@pytest.fixture
def job() -> Job:
    return a_job()


def test_everything_is_pending_before_the_first_run(job: Job) -> None:
    rows = pending_of(job, ROWS)
    assert kinds(job) == [[PENDING] * 2, [PENDING], [PENDING] * 3]
    assert (rows.edits, rows.before, rows.quarantined) == (6, 0, 0)
    assert left(rows) == EVERYTHING


def test_only_edits_whose_newest_row_is_ok_are_done(job: Job) -> None:
    answer(pending_of(job, ROWS), run="r1", takes=lambda _, edit: edit != "green")
    answer(pending_of(job, ROWS), "failed", run="r2")
    assert kinds(job) == [[DONE, DONE], [DONE], [DONE, DONE, PENDING]]
    rows = pending_of(job, ROWS)
    assert (rows.edits, rows.before, rows.amount.videos) == (1, 5, 1)
    assert left(rows) == [("c", "green")]


def test_an_edit_that_failed_after_it_was_done_is_pending_again(job: Job) -> None:
    everything = pending_of(job, ROWS)
    answer(everything, run="r1")
    assert left(pending_of(job, ROWS)) == []
    answer(everything, "failed", run="r2", takes=lambda video, _: video == "b")
    assert left(pending_of(job, ROWS)) == [("b", "red")]


def test_quarantined_edits_are_left_out_until_they_are_asked_for(job: Job) -> None:
    everything = pending_of(job, ROWS)
    answer(everything, run="r1", takes=lambda video, _: video == "a")
    answer(everything, "quarantined", run="r2", takes=lambda _, edit: edit == "blue")
    answer(everything, run="r3", takes=lambda *ids: ids == ("c", "red"))
    assert kinds(job) == [[DONE, QUARANTINED], [PENDING], [DONE, QUARANTINED, PENDING]]
    rows = pending_of(job, ROWS)
    assert (rows.edits, rows.before, rows.quarantined) == (2, 2, 2)
    assert left(rows) == [("b", "red"), ("c", "green")]
    (checked,) = rows
    assert [work.left_pending for work in work_of(checked.work)] == [0, 1], "c keeps a trajectory"

    again = pending_of(job, ROWS, retry_quarantined=True)
    assert kinds(job, retry=True) == [[DONE, PENDING], [PENDING], [DONE, PENDING, PENDING]]
    assert (again.edits, again.before, again.quarantined) == (4, 2, 0)
    assert left(again) == [("a", "blue"), ("b", "red"), ("c", "blue"), ("c", "green")]


def test_a_quarantined_edit_that_is_made_in_the_end_is_done(job: Job) -> None:
    answer(pending_of(job, ROWS), "quarantined", run="r1")
    assert left(pending_of(job, ROWS)) == []
    answer(pending_of(job, ROWS, retry_quarantined=True), run="r2")
    assert pending_of(job, ROWS).before == 6


@pytest.mark.parametrize("status", ["ok", "quarantined"])
def test_other_settings_make_all_pending_and_other_rows_what_they_change(
    job: Job, status: str
) -> None:
    answer(pending_of(job, ROWS), status)
    other = replace(job, checkpoint_fingerprint="another")
    assert left(pending_of(other, ROWS)) == EVERYTHING
    same = {"source_prompt": None, "num_frames": None}
    changed = [
        {**ROWS[0], **same},
        {**ROWS[1], **same, "source_prompt": "a car"},
        {**ROWS[2], **same, "num_frames": 8},
    ]
    assert left(pending_of(job, changed)) == EVERYTHING[3:], "no source prompt is used"
    negative = [{**edit, "negative_prompt": "fog"} for edit in ROWS[1]["edits"]]
    assert left(pending_of(job, [ROWS[0], {**ROWS[1], "edits": negative}])) == [("b", "red")]


def test_rows_that_repeat_an_id_stay_pending_to_be_refused(job: Job) -> None:
    answer(pending_of(job, ROWS))
    twice = [*ROWS, ROWS[1], a_row("d", "red")]
    rows = pending_of(job, twice)
    assert rows.answered.edits.tolist() == [DONE] * 6 + [PENDING] * 2
    assert rows.answered.left_out().tolist() == [2, 1, 3, 0, 0]
    (checked,) = rows
    assert checked.refused["error_code"].to_pylist() == ["duplicate_video_id"]
    assert checked.work["video_id"].to_pylist() == ["d"]
    assert (rows.edits, rows.before) == (2, 6)


def test_an_edit_that_repeats_an_id_of_its_video_is_refused_each_time(job: Job) -> None:
    row = a_row("a", "red", "blue", "red")
    answer(pending_of(job, [row]))
    for _ in range(2):
        rows = pending_of(job, [row])
        assert rows.answered.edits.tolist() == [DONE, DONE, PENDING]
        (checked,) = rows
        assert checked.work.num_rows == 0
        assert checked.refused["edit_id"].to_pylist() == ["red:3"]
        assert checked.refused["error_code"].to_pylist() == ["duplicate_edit_id"]


def test_default_ids_are_found_again_and_rows_may_move(job: Job) -> None:
    edits = [{"prompt": "red"}, {"prompt": "red", "seed": 3}, {"prompt": "blue", "seed": None}]
    rows = [{"video": f"v/{name}.mp4", "edits": edits} for name in "abc"]
    answer(pending_of(job, rows), takes=lambda video, _: not video.startswith("b"))
    moved = [{**row, "note": "moved"} for row in reversed(rows)]
    found = find_answered(with_rows(job, moved), pending_of(job, moved).scan)
    assert found.edits.tolist() == [DONE] * 3 + [PENDING] * 3 + [DONE] * 3


def test_rows_without_edits_have_their_place_among_the_others() -> None:
    found = Answered(np.array([DONE, PENDING, QUARANTINED], np.uint8), np.array([0, 2, 2, 3]))
    assert [found.of_row(row).tolist() for row in range(4)] == [[], [1, 0], [], [2]]
    assert found.left_out().tolist() == [0, 1, 0, 1]
    assert (found.count(DONE), found.count(QUARANTINED)) == (1, 1)


def retried(job: Job, *codes: str, quarantined: bool = False, **how: Any) -> PendingRows:
    """What a run takes of the failed edits."""
    return pending_of(job, ROWS, only=FailedOf(frozenset(codes), quarantined), **how)


@pytest.fixture
def failures(job: Job) -> Job:
    """`a/red` is done, `b` ran out of memory, `c/red` died, `c/blue` was not found, two are new."""
    everything = pending_of(job, ROWS)
    answer(everything, run="r1", takes=lambda *ids: ids == ("a", "red"))
    for run, code, ids in (
        ("r2", ErrorCode.OUT_OF_MEMORY, ("b", "red")),
        ("r3", ErrorCode.RANK_DIED, ("c", "red")),
        ("r4", ErrorCode.VIDEO_NOT_FOUND, ("c", "blue")),
    ):
        status = "quarantined" if code is ErrorCode.RANK_DIED else "failed"
        answer(everything, status, run=run, code=code, takes=lambda *n, ids=ids: n == ids)
    return job


def test_a_run_of_failed_edits_takes_no_new_ones(failures: Job) -> None:
    rows = retried(failures)
    assert left(rows) == [("b", "red"), ("c", "red"), ("c", "blue")]
    assert (rows.edits, rows.before, rows.amount.videos) == (3, 1, 2)
    assert rows.answered.count(NOT_TAKEN) == 2
    assert left(pending_of(failures, ROWS)) == [
        ("a", "blue"),
        ("b", "red"),
        ("c", "blue"),
        ("c", "green"),
    ], "a plain run takes what is new and what failed, and no quarantined edit"


def test_a_run_of_failed_edits_may_be_of_some_codes(failures: Job) -> None:
    assert left(retried(failures, "out_of_memory")) == [("b", "red")]
    assert left(retried(failures, "rank_died")) == [("c", "red")]
    assert left(retried(failures, "not_finite")) == []
    assert retried(failures, "not_finite").edits == 0
    both = retried(failures, "out_of_memory", quarantined=True)
    assert left(both) == [("b", "red"), ("c", "red")]
    assert retried(failures, "out_of_memory").answered.count(QUARANTINED) == 1


def test_a_run_of_failed_edits_may_be_of_some_videos(failures: Job) -> None:
    assert left(retried(failures, selection=Selection([("c", None)]))) == [
        ("c", "red"),
        ("c", "blue"),
    ]
    assert left(retried(failures, limit=1)) == [("b", "red")]
    assert left(retried(failures, selection=Selection([("*", "blue")]), limit=3)) == [("c", "blue")]


def test_an_edit_that_is_left_out_still_needs_its_trajectory(failures: Job) -> None:
    (checked,) = retried(failures, "rank_died")
    (work,) = work_of(checked.work)
    assert work.left_pending == 2, "c/blue failed with another code, and c/green is new"


def test_changed_settings_do_not_hide_a_failed_edit(failures: Job) -> None:
    editing = replace(failures.editing, precision="fp32", seed=1)
    assert left(retried(replace(failures, editing=editing), "out_of_memory")) == [("b", "red")]


def test_what_is_refused_again_is_taken_only_where_it_failed(job: Job) -> None:
    rows = [
        {
            "video": "/a.mp4",
            "video_id": "a",
            "edits": [{"edit_id": i, "prompt": p} for i, p in some],
        }
        for some in [[("x", ""), ("y", "good")], [("z", "")]]
    ]
    rows[1] |= {"video": "/b.mp4", "video_id": "b"}
    rows.append({"video": "/c.mp4", "video_id": "c", "edits": []})
    table = table_of(rows)
    answer(pending_of(job, table), "failed", run="r1", code=ErrorCode.OUT_OF_MEMORY)
    only = pending_of(job, table, only=FailedOf())
    assert (left(only), only.found.refused.total()) == ([("a", "y")], 0)
    whole = pending_of(job, table)
    assert whole.found.refused["no_edits"] == 1


def test_before_the_first_run_nothing_has_failed(job: Job) -> None:
    rows = retried(job)
    assert (left(rows), rows.edits, rows.answered.count(NOT_TAKEN)) == ([], 0, 6)
