"""A run's name sorts after those of all earlier runs, and by it the newest row is found."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from cluster.output.lease import held
from cluster.output.lost import before_a_run
from cluster.output.naming import after, run_name
from cluster.results.compaction import compact, current_rows
from pipeline.storage import Folder
from tests.cluster.test_results import a_result, store
from tests.pending_rows import done_edits

FIRST, SECOND = "20261128T070000.000000", "20261128T071000.000000"
AHEAD = 60
"""Minutes that the clock of one node is ahead."""


@pytest.mark.parametrize(
    "earlier",
    [
        {"status": "failed", "error_code": "rank_died"},
        {"status": "quarantined", "error_code": "rank_died"},
        {"status": "ok", "fingerprint": "of another prompt"},
        {"status": "ok", "size_bytes": 4, "output": "edits/v/a.mp4"},
    ],
    ids=["failed", "quarantined", "another prompt", "lost"],
)
def test_an_edit_made_by_a_later_run_counts_though_an_earlier_node_had_a_clock_ahead(
    tmp_path: Path, earlier: dict
) -> None:
    output = Folder(str(tmp_path))
    store(output, FIRST, a_result("v", "a", minute=AHEAD, run=FIRST) | earlier)
    before_a_run(output, SECOND, lambda text: None)
    assert ("v", "a", "f") not in done_edits(output)
    output.write("edits/v/a.mp4", b"12345")
    made = a_result("v", "a", run=SECOND, minute=10, size_bytes=5, output="edits/v/a.mp4")
    store(output, SECOND, made)
    assert ("v", "a", "f") in done_edits(output)
    compact(output, SECOND)
    assert [(row["run"], row["status"]) for row in current_rows(output)] == [(SECOND, "ok")]
    assert ("v", "a", "f") in done_edits(output)


def test_of_two_rows_of_one_run_the_one_finished_last_counts(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    rows = [a_result("v", "a", "failed", 1, run=FIRST), a_result("v", "a", run=FIRST)]
    store(output, FIRST, *rows)
    assert not done_edits(output)
    assert [row["status"] for row in current_rows(output)] == ["failed"]


def test_a_name_sorts_after_those_of_runs_whose_clock_was_ahead() -> None:
    assert after(FIRST, [SECOND]) == "20261128T071000.000001"
    assert after(FIRST, ["20261128T235959.999999"]) == "20261129T000000.000000"
    assert after(SECOND, [FIRST, "", "part"]) == SECOND
    assert after(SECOND, [SECOND]) > SECOND
    assert run_name() > FIRST[:8]


def test_a_run_that_waited_is_named_after_all_that_ended_before_it_began(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    names = []
    for command, run in (("run", SECOND), ("gc", ""), ("run", FIRST), ("run", FIRST)):
        with held(output, run, command=f"retake {command}") as lease:
            names.append(lease.run)
    assert names == [SECOND, "", f"{SECOND[:-1]}1", f"{SECOND[:-1]}2"]


def test_a_run_is_named_after_those_with_results_where_the_lease_is_gone(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    store(output, SECOND, a_result("v", "a", run=SECOND))
    store(output, "my-copy", a_result("v", "b", run=FIRST))
    with held(output, FIRST) as lease:
        assert lease.run == f"{SECOND[:-1]}1"


def test_a_lease_of_the_version_before_is_read_on(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    with held(output, SECOND):
        pass
    record = output.read("lease/000001.json").decode()
    assert f'"latest": "{SECOND}"' in record
    values = json.loads(record)
    del values["latest"]
    output.write("lease/000001.json", json.dumps(values).encode())
    with held(output, FIRST) as lease:
        assert lease.notes == ()
        assert lease.run > SECOND


def test_marks_of_lost_edits_sort_before_the_run_that_makes_them_again(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    store(output, FIRST, a_result("v", "a", run=FIRST, output="edits/v/a.mp4", minute=AHEAD))
    before_a_run(output, SECOND, lambda text: None)
    (mark,) = current_rows(output)
    assert (mark["error_code"], mark["run"]) == ("edit_lost", FIRST)
    made = a_result("v", "a", minute=AHEAD, run=FIRST)["finished_at"]
    assert mark["finished_at"] - made == timedelta(microseconds=1)
