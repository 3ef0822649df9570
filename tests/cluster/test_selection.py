"""Which edits of a manifest a run takes, and what it counts of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.job import Job
from cluster.manifest import ManifestFile
from cluster.selection.entries import Entry, Selection, names_of
from cluster.selection.survey import survey
from cluster.stages import group as stages
from cluster.stages.blocks import rebuilt, work_of
from cluster.stages.edit import ReconstructEdits
from cluster.stages.invert import FanOut
from jobs.manifest.checks import check_manifest
from jobs.manifest.writing import write_manifest
from pipeline.records import InversionResult
from pipeline.settings import TrajectorySettings
from pipeline.storage import Folder
from tests.cluster.ranks.test_owner import COMMAND
from tests.cluster.test_stages import GROUP, Reports, a_row
from tests.pending_rows import answer, pending_of, work_of_row
from tests.small_jobs import a_job

ROWS = [
    a_row("a", "red", "blue"),
    a_row("b", "red"),
    a_row("c", "red", "blue", "green"),
    a_row("ab", "gold"),
]


def taken(*entries: Entry) -> list[tuple[str, str]]:
    """The ids of what a selection takes of `ROWS`."""
    rows = pending_of(a_job(), ROWS, selection=Selection(entries))
    works = [work for checked in rows for work in work_of(checked.work)]
    return [(str(work.video_id), str(edit.edit_id)) for work in works for edit in work.edits]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([("b", None)], [("b", "red")]),
        ([("a", "blue")], [("a", "blue")]),
        ([("a", "blue"), ("a", None)], [("a", "red"), ("a", "blue")]),
        ([("a*", None)], [("a", "red"), ("a", "blue"), ("ab", "gold")]),
        ([("*", "blue")], [("a", "blue"), ("c", "blue")]),
        ([("c", "*e*")], [("c", "red"), ("c", "blue"), ("c", "green")]),
        ([("c", "g*"), ("b", "red")], [("b", "red"), ("c", "green")]),
        ([("a", "green")], []),
        ([("?", None), ("[ab]", None), (".", None)], []),
    ],
)
def test_a_star_alone_stands_for_other_text(
    entries: list[Entry], expected: list[tuple[str, str]]
) -> None:
    assert taken(*entries) == expected


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = a_job()
    return replace(job, editing=replace(job.editing, output=str(tmp_path / "out")))


def test_a_video_knows_how_many_of_its_pending_edits_are_left_out(job: Job) -> None:
    answer(pending_of(job, ROWS), takes=lambda video, edit: (video, edit) == ("c", "green"))

    def left(*entries: Entry) -> list[int]:
        (checked,) = pending_of(job, ROWS, selection=Selection(entries))
        return [work.left_pending for work in work_of(checked.work)]

    assert left(("c", "red")) == [1], "blue is pending, green is done"
    assert left(("c", None)) == [0]


def test_refused_rows_and_edits_are_taken_by_their_ids() -> None:
    rows = [{**a_row("v", "red"), "fps": -1.0}, a_row("w", "red", "red", "blue")]
    selection = Selection([("v", "red"), ("w", "red")])
    (checked,) = pending_of(a_job(), rows, selection=selection)
    refused = [(r["video_id"], r["edit_id"], r["error_code"]) for r in checked.refused.to_pylist()]
    assert refused == [("v", "red", "bad_value"), ("w", "red:2", "duplicate_edit_id")]
    assert [edit.edit_id for edit in work_of(checked.work)[0].edits] == ["red"]


def test_names_are_those_that_the_row_check_gives() -> None:
    row: dict[str, Any] = {"video": "clips/a.mp4", "edits": [{"prompt": "red"}, {"prompt": "blue"}]}
    work = work_of_row(a_job(), row)
    assert work is not None
    assert names_of(row) == (work.video_id, [edit.edit_id for edit in work.edits])
    assert names_of({"video": None, "edits": None}) == (None, [None])


@pytest.fixture
def manifest(tmp_path: Path, job: Job) -> Job:
    """A job with a manifest of a bad row and `ROWS`."""
    rows = [{**a_row("bad", "red"), "fps": -1.0}, *ROWS]
    write_manifest(rows, str(tmp_path / "m.parquet"))
    return replace(job, files=check_manifest(str(tmp_path / "m.parquet")).files)


def test_a_limit_takes_the_first_videos_that_have_something_pending(manifest: Job) -> None:
    answer(pending_of(manifest), takes=lambda video, edit: video == "a")
    rows = pending_of(manifest, limit=2)
    found = rows.found
    assert found.ids == ["b", "c"]
    assert (found.videos, found.pending, found.done, found.refused.total()) == (2, 4, 0, 0)
    (checked,) = rows
    assert checked.work["video_id"].to_pylist() == ["b", "c"]
    assert checked.refused.num_rows == 0, "the bad row before them is for a whole run"


def test_a_limit_reads_no_more_of_the_manifest_than_it_needs(manifest: Job) -> None:
    more = (*manifest.files.files, ManifestFile("/nowhere.parquet"))
    rows = pending_of(manifest, limit=1)
    found = replace(rows, job=replace(manifest, files=replace(manifest.files, files=more))).found
    assert found.ids == ["a"]


def test_a_survey_counts_what_is_pending_done_and_refused(manifest: Job) -> None:
    answer(pending_of(manifest), takes=lambda video, edit: (video, edit) == ("a", "red"))
    found = survey(pending_of(manifest))
    assert (found.videos, found.pending, found.done) == (4, 6, 1)
    assert found.refused == {"bad_value": 1}
    assert found.edits == 7
    part = pending_of(manifest, selection=Selection([("a", "red"), ("c", "*")])).found
    assert (part.videos, part.pending, part.done, part.refused.total()) == (1, 3, 1, 0)
    assert Selection([("a", "red")]).takes_video("a"), "a video of which all is done counts, too"


@pytest.mark.parametrize(("entry", "left"), [(("a", None), False), (("a", "red"), True)])
def test_a_trajectory_that_is_not_kept_stays_while_an_edit_that_was_left_out_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: Entry, left: bool
) -> None:
    monkeypatch.setattr(stages, "rank_command", lambda: COMMAND)
    job = a_job()
    editing = replace(job.editing, output=str(tmp_path), trajectory=TrajectorySettings("never"))
    job = replace(job, editing=editing)
    Folder(str(tmp_path)).write("trajectories/k/index.json", b"{}")
    (checked,) = pending_of(job, ROWS[:1], selection=Selection([entry]))
    table = checked.work
    inverted = InversionResult("k", 5, 32, 32, 8.0, "sources/a.mp4")
    works = [replace(work, inversion_result=inverted) for work in work_of(table)]
    stage = ReconstructEdits(job, Reports(), GROUP, "cpu", 1)
    try:
        made = stage(FanOut(job)(rebuilt(table, works, range(len(works)))))
    finally:
        stage.group.close()
    assert set(made["status"].to_pylist()) == {"ok"}
    assert (tmp_path / "trajectories/k").exists() == left
