"""The row check: done edits are left out, refused ones stay beside what can be made."""

from typing import Any

import pytest

from cluster.pending.check import RowCheck
from cluster.pending.refused import results_of_refused
from cluster.rows import default_video_id
from pipeline.errors import ErrorCode
from pipeline.records import EditResult
from tests.cluster.test_stages import a_row
from tests.pending_rows import pending_of, work_of_row
from tests.small_jobs import a_job

ROW = a_row("v", "red", "blue", "green", source_prompt="a car")


def ids(work: Any, *, pending: bool) -> list[str]:
    return [edit.edit_id for edit in work.edits if edit.pending == pending]


def test_done_edits_are_left_out_and_a_row_that_is_all_done_is_no_work() -> None:
    job = a_job()
    work = work_of_row(job, ROW, done={"blue"}, quarantined=1)
    assert work
    assert ids(work, pending=True) == ["red", "green"]
    assert work.left_pending == 1, "the trajectory is kept for what is quarantined"
    assert work_of_row(job, ROW, done={"red", "blue", "green"}) is None
    assert work_of_row(job, ROW, done={"red", "blue", "green", "gone"}) is None


def test_each_edit_has_its_fingerprint_whatever_else_is_pending() -> None:
    job = a_job()
    whole, part = work_of_row(job, ROW), work_of_row(job, ROW, done={"red", "blue"})
    assert whole
    assert part
    assert part.edits == whole.edits[2:]
    assert len({edit.fingerprint for edit in whole.edits}) == 3


def test_a_refused_edit_stays_whatever_is_done_beside_it() -> None:
    row = {**ROW, "edits": [*ROW["edits"], {"prompt": " ", "edit_id": "empty"}]}
    for done in (set(), {"red"}, {"red", "blue", "green"}):
        work = work_of_row(a_job(), row, done=done)
        assert work
        assert ids(work, pending=False) == ["empty"]
        assert len(work.edits) == 4 - len(done)
        (result,) = results_of_refused(work, "r")
        assert (result.edit_id, result.error_code) == ("empty", ErrorCode.EMPTY_PROMPT)
        assert (result.video_id, result.status, result.run) == ("v", "failed", "r")
        assert not result.fingerprint, "it says nothing of an edit that has the same ids"


@pytest.mark.parametrize(
    ("values", "how", "code"),
    [
        ({}, {"repeated": True}, ErrorCode.DUPLICATE_VIDEO_ID),
        ({"fps": -1.0}, {}, ErrorCode.BAD_VALUE),
        ({"video_id": "../v"}, {}, ErrorCode.BAD_VIDEO_ID),
        ({"video": " "}, {}, ErrorCode.BAD_URI),
        ({"edits": "red"}, {}, ErrorCode.BAD_VALUE),
        ({"edits": []}, {}, ErrorCode.NO_EDITS),
        ({"edits": None}, {}, ErrorCode.NO_EDITS),
    ],
)
def test_a_refused_row_has_a_result_for_each_edit_that_it_names(
    values: dict[str, Any], how: dict[str, Any], code: ErrorCode
) -> None:
    row = {**ROW, **values}
    work = RowCheck.of(a_job()).work(row, done={"red"}, **how)
    assert work
    assert not work.pending
    results = results_of_refused(work, "r")
    edits = row["edits"] if isinstance(row["edits"], list) else []
    assert [result.edit_id for result in results] == [e["edit_id"] for e in edits] or [None]
    assert {(r.status, r.error_code, r.fingerprint) for r in results} == {("failed", code, None)}
    assert {r.video_id for r in results} == {row["video_id"]}


def test_a_refused_row_has_one_result_for_each_of_its_edits_or_one_without() -> None:
    rows = [{**a_row("a", "red", "blue"), "video_id": "../x"}, {"video": "b", "edits": []}]
    (checked,) = pending_of(a_job(), rows)
    assert checked.work.num_rows == 0
    assert [
        (row["video_id"], row["edit_id"], row["error_code"], row["status"])
        for row in checked.refused.to_pylist()
    ] == [
        ("../x", "red", "bad_video_id", "failed"),
        ("../x", "blue", "bad_video_id", "failed"),
        (default_video_id("b"), None, "no_edits", "failed"),
    ]


def test_a_refused_row_shows_as_text_whatever_it_was_given() -> None:
    def shown(row: dict[str, Any]) -> EditResult:
        work = work_of_row(a_job(), row)
        assert work
        (result,) = results_of_refused(work, "r")
        return result

    wrong = {"video": 5, "source_prompt": 7, "edits": [{"edit_id": 3, "prompt": 4}]}
    row = shown(wrong)
    assert (row.error_code, row.video, row.source_prompt) == ("bad_uri", "5", "7")
    assert (row.video_id, row.edit_id, row.prompt) == (None, "3", "4")
    assert shown({**wrong, "video_id": 9}).video_id == "9"
    row = shown({"video": None, "video_id": "v", "edits": [{"edit_id": None}]})
    assert (row.video, row.video_id, row.source_prompt, row.prompt) == (None, "v", None, None)
