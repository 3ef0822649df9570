"""Which edits of a manifest a run takes, and what it counts of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.manifest import ManifestFile, ManifestFiles
from cluster.results.ledger import Keys, done_key
from cluster.scan import scan_manifest
from cluster.selection.entries import Entry, Selection, names_of
from cluster.selection.survey import survey
from cluster.stages import group as stages
from cluster.stages.blocks import rebuilt, work_of
from cluster.stages.check import CheckRows
from cluster.stages.edit import ReconstructEdits
from cluster.stages.invert import FanOut
from jobs.manifest.checks import check_manifest
from jobs.manifest.writing import write_manifest
from pipeline.records import InversionResult
from pipeline.settings import TrajectorySettings
from pipeline.storage import Folder
from tests.cluster.checked_row import work_of_row
from tests.cluster.ranks.test_owner import COMMAND
from tests.cluster.test_stages import GROUP, Reports, a_row
from tests.small_jobs import a_job

ROWS = [
    a_row("a", "red", "blue"),
    a_row("b", "red"),
    a_row("c", "red", "blue", "green"),
    a_row("ab", "gold"),
]


def taken(*entries: Entry) -> list[tuple[str, str]]:
    """The ids of what a selection takes of `ROWS`."""
    check = CheckRows(a_job(), Keys.of([]), {}, Selection(entries))
    works = [work for row in ROWS if (work := work_of_row(check, row))]
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


def test_a_video_knows_how_many_of_its_pending_edits_are_left_out() -> None:
    done = work_of_row(CheckRows(a_job(), Keys.of([]), {}), ROWS[2])
    assert done is not None
    green = next(edit for edit in done.edits if edit.edit_id == "green")
    keys = Keys.of([done_key("c", "green", str(green.fingerprint))])
    check = CheckRows(a_job(), keys, {}, Selection([("c", "red")]))
    work = work_of_row(check, ROWS[2])
    assert work is not None
    assert work.left_pending == 1, "blue is pending, green is done"
    whole = work_of_row(CheckRows(a_job(), keys, {}, Selection([("c", None)])), ROWS[2])
    assert whole is not None
    assert whole.left_pending == 0


def test_refused_rows_and_edits_are_taken_by_their_ids() -> None:
    bad_video = {**a_row("v", "red"), "fps": -1.0}
    twice = a_row("w", "red", "red", "blue")
    check = CheckRows(a_job(), Keys.of([]), {}, Selection([("v", "red"), ("w", "red")]))
    refused, repeated = work_of_row(check, bad_video), work_of_row(check, twice)
    assert refused is not None and refused.error_code == "bad_value"
    assert repeated is not None
    assert [edit.edit_id for edit in repeated.edits] == ["red", "red:2"]
    assert check.selected(twice) == 2


def test_names_are_those_that_the_row_check_gives() -> None:
    row: dict[str, Any] = {"video": "clips/a.mp4", "edits": [{"prompt": "red"}, {"prompt": "blue"}]}
    work = work_of_row(CheckRows(a_job(), Keys.of([]), {}), row)
    assert work is not None
    assert names_of(row) == (work.video_id, [edit.edit_id for edit in work.edits])
    assert names_of({"video": None, "edits": None}) == (None, [None])


@pytest.fixture
def manifest(tmp_path: Path) -> ManifestFiles:
    rows = [{**a_row("bad", "red"), "fps": -1.0}, *ROWS]
    write_manifest(rows, str(tmp_path / "m.parquet"))
    return check_manifest(str(tmp_path / "m.parquet")).files


def test_a_limit_takes_the_first_videos_that_have_something_pending(
    manifest: ManifestFiles,
) -> None:
    first = work_of_row(CheckRows(a_job(), Keys.of([]), {}), ROWS[0])
    assert first is not None
    done = Keys.of([done_key("a", str(e.edit_id), str(e.fingerprint)) for e in first.edits])
    found = survey(manifest, CheckRows(a_job(), done, {}), limit=2)
    assert found.ids == ["b", "c"]
    assert (found.videos, found.pending, found.done, found.refused.total()) == (2, 4, 0, 0)
    assert found.rows is not None
    assert found.rows["video_id"].to_pylist() == ["b", "c"]


def test_a_limit_reads_no_more_of_the_manifest_than_it_needs(manifest: ManifestFiles) -> None:
    more = replace(manifest, files=(*manifest.files, ManifestFile("/nowhere.parquet")))
    found = survey(more, CheckRows(a_job(), Keys.of([]), {}), limit=1)
    assert found.ids == ["a"]


def test_a_survey_counts_what_is_pending_done_and_refused(manifest: ManifestFiles) -> None:
    first = work_of_row(CheckRows(a_job(), Keys.of([]), {}), ROWS[0])
    assert first is not None
    red = first.edits[0]
    done = Keys.of([done_key("a", "red", str(red.fingerprint))])
    found = survey(manifest, CheckRows(a_job(), done, scan_manifest(manifest).repeated))
    assert (found.videos, found.pending, found.done) == (4, 6, 1)
    assert found.refused == {"bad_value": 1}
    assert found.edits == 7
    only = CheckRows(a_job(), done, {}, Selection([("a", "red"), ("c", "*")]))
    part = survey(manifest, only)
    assert (part.videos, part.pending, part.done, part.refused.total()) == (1, 3, 1, 0)


@pytest.mark.parametrize(("entry", "left"), [(("a", None), False), (("a", "red"), True)])
def test_a_trajectory_that_is_not_kept_stays_while_an_edit_that_was_left_out_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: Entry, left: bool
) -> None:
    monkeypatch.setattr(stages, "rank_command", lambda: COMMAND)
    job = a_job()
    editing = replace(job.editing, output=str(tmp_path), trajectory=TrajectorySettings("never"))
    job = replace(job, editing=editing)
    Folder(str(tmp_path)).write("trajectories/k/index.json", b"{}")
    table = CheckRows(job, Keys.of([]), {}, Selection([entry]))(pa.Table.from_pylist(ROWS[:1]))
    inverted = InversionResult("k", 5, 32, 32, 8.0, "sources/a.mp4")
    works = [replace(work, inversion_result=inverted) for work in work_of(table)]
    stage = ReconstructEdits(job, Reports(), GROUP, "cpu", 1)
    try:
        made = stage(FanOut(job)(rebuilt(table, works, range(len(works)))))
    finally:
        stage.group.close()
    assert set(made["status"].to_pylist()) == {"ok"}
    assert (tmp_path / "trajectories/k").exists() == left
