"""Results are the ledger: what is done, what is newest, and what a crash leaves behind."""

import random
import tracemalloc
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.results.compaction import compact, current_rows
from cluster.results.parts import read_parts
from cluster.results.schema import SCHEMA, join_tables, to_parquet
from pipeline.records import EditResult, Metrics, from_dict
from pipeline.storage import Folder
from tests.pending_rows import done_edits

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
OLDER = pa.schema(
    [f.with_type(pa.int32()) if f.type == pa.int64() and f.name != "seed" else f for f in SCHEMA]
)
"""The columns as results written before 0.2 have them: integers of 32 bits, but for the seed."""

MINUTE = timedelta(minutes=1)


def a_result(video: str, edit: str, status: str = "ok", minute: int = 0, **values: object) -> dict:
    return {
        "video_id": video,
        "edit_id": edit,
        "status": status,
        "fingerprint": "f",
        "finished_at": NOON + timedelta(minutes=minute),
        **values,
    }


def store(output: Folder, run: str, *rows: dict) -> None:
    store_table(output, run, pa.Table.from_pylist(list(rows), schema=SCHEMA))


def store_table(output: Folder, run: str, table: pa.Table, file: int = 0) -> None:
    output.write(f"results/{run}-{file:06d}.parquet", to_parquet(table))


def store_older(output: Folder, run: str, *rows: dict) -> None:
    """As `store`, with the column types of older results."""
    table = pa.Table.from_pylist(list(rows), schema=OLDER)
    output.write(f"results/{run}-000000.parquet", to_parquet(table))


def all_rows(output: Folder) -> list[dict]:
    return [row for _, table in read_parts(output) for row in table.to_pylist()]


def test_results_from_before_metrics_had_reasons_stand_beside_new_ones(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    metrics = SCHEMA.field("metrics").type
    older = pa.struct([field for field in metrics if field.name != "unmeasured"])
    schema = pa.schema([f.with_type(older) if f.name == "metrics" else f for f in SCHEMA])
    row = a_result("v", "a", metrics={"flicker": 0.5})
    output.write("results/r1-000000.parquet", to_parquet(pa.Table.from_pylist([row], schema)))
    store(output, "r2", a_result("v", "b", metrics={"unmeasured": "flicker: no luma"}))
    joined = join_tables([table for _, table in read_parts(output)]).to_pylist()
    reasons = {row["edit_id"]: row["metrics"]["unmeasured"] for row in joined}
    assert reasons == {"a": None, "b": "flicker: no luma"}
    assert from_dict(Metrics, {"flicker": 0.5}).unmeasured is None


def test_only_an_ok_row_is_done(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    store(output, "r1", a_result("v", "a"), a_result("v", "b", "failed"))
    done = done_edits(output)
    assert ("v", "a", "f") in done
    assert ("v", "b", "f") not in done
    assert ("v", "a", "other settings") not in done


def test_compaction_keeps_the_newest_row_of_each_edit(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    store(output, "r1", a_result("v", "a", "failed", 0), a_result("v", "b", minute=0))
    store(output, "r2", a_result("v", "a", "ok", 5, seed=9))
    compact(output, "r2")
    rows = {row["edit_id"]: row for row in all_rows(output)}
    assert len(all_rows(output)) == 2
    assert (rows["a"]["status"], rows["a"]["seed"]) == ("ok", 9)
    assert len(output.list("results")) == 1


def test_the_newest_row_is_the_one_that_was_finished_last_in_whatever_file(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    store(output, "r1", a_result("v", "a", "failed", 5), a_result("v", "b", minute=5, seed=2))
    store(output, "r2", a_result("v", "a", minute=1), a_result("v", "b", "failed", 1))
    store(output, "r3", a_result("v", "a", minute=2), a_result("v", "b", minute=5, seed=3))
    done = done_edits(output)
    assert ("v", "a", "f") not in done
    assert ("v", "b", "f") in done
    compact(output, "r3")
    rows = {row["edit_id"]: row for row in all_rows(output)}
    assert len(all_rows(output)) == 2
    assert (rows["a"]["status"], rows["a"]["finished_at"]) == ("failed", NOON + 5 * MINUTE)
    assert rows["b"]["seed"] == 3, "of two rows of one moment the one that was stored later stays"


def test_a_compaction_that_was_killed_before_it_removed_the_old_files_is_finished_by_the_next(
    tmp_path: Path,
) -> None:
    output = Folder(str(tmp_path))
    store(output, "r1", a_result("v", "a", minute=0))
    store(output, "r2", a_result("v", "a", minute=1))
    store(output, "r2-compact", a_result("v", "a", minute=1))
    compact(output, "r3")
    assert [row["finished_at"] for row in all_rows(output)] == [NOON + timedelta(minutes=1)]


def test_many_rows_are_compacted_into_few_files_and_then_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.results.compaction.ROWS_PER_FILE", 3)
    output = Folder(str(tmp_path))
    for number in range(10):
        row = a_result(f"v{number}", "a")
        store_table(output, "r1", pa.Table.from_pylist([row], schema=SCHEMA), number)
    compact(output, "r2")
    files = output.list("results")
    assert files == [f"results/r2-compact-{n:06d}.parquet" for n in range(4)]
    assert [table.num_rows for _, table in read_parts(output)] == [3, 3, 3, 1]
    assert [row["video_id"] for row in all_rows(output)] == [f"v{n}" for n in range(10)]
    compact(output, "r3")
    assert output.list("results") == files


@pytest.mark.parametrize(("rows", "is_left"), [(5, False), (6, True), (7, True)])
def test_files_are_left_when_they_are_one_more_than_the_rows_fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, is_left: bool
) -> None:
    monkeypatch.setattr("cluster.results.compaction.ROWS_PER_FILE", 3)
    output = Folder(str(tmp_path))
    for part in range(3):
        made = [a_result(f"v{n}", "a") for n in range(rows) if n % 3 == part]
        store(output, f"r{part}", *made)
    before = output.list("results")
    compact(output, "r9")
    assert (output.list("results") == before) == is_left
    assert len(all_rows(output)) == rows


def test_rows_of_runs_with_other_columns_are_kept_together(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    store(output, "r1", a_result("v", "a"))
    table = pa.Table.from_pylist([a_result("w", "a")], schema=SCHEMA)
    store_table(output, "r2", table.append_column("split", pa.array(["train"])))
    compact(output, "r2")
    assert {row["video_id"]: row["split"] for row in all_rows(output)} == {"v": None, "w": "train"}


def test_one_file_of_distinct_edits_is_left_as_it_is(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    store(output, "r1", a_result("v", "a"), a_result("v", "b"))
    before = output.list("results")
    compact(output, "r2")
    assert output.list("results") == before


def test_compaction_holds_little_of_each_row(tmp_path: Path) -> None:
    """What is compared of 10^7 rows has to fit; as Python objects they took 0.8 kB each."""
    output, parts, rows = Folder(str(tmp_path)), 20, 500
    for run in range(parts):
        made = [a_result(f"video-{run}-{n}", "a") for n in range(rows)]
        store(output, f"r{run:02d}", *made)
    tracemalloc.start()
    compact(output, "r99")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(output.list("results")) == 1
    assert peak < 300 * parts * rows


def test_refused_rows_of_one_run_all_stay_though_they_have_the_same_ids(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    nameless = a_result(None, None, "failed", run="r1", fingerprint=None)
    twice = a_result("v", "a", "failed", run="r1", fingerprint=None)
    store(output, "r1", nameless, nameless, twice, twice, a_result("w", "a", run="r1"))
    store(output, "r1-x", a_result(None, None, "failed", minute=1, run="r1", fingerprint=None))
    compact(output, "r1")
    assert len(all_rows(output)) == 6
    copies = [{**row, "run": "r1"} for row in all_rows(output)]
    store(output, "r2-killed", *copies)
    compact(output, "r2")
    assert len(all_rows(output)) == 6


@pytest.mark.parametrize("refused_at", [-1, 0, 1])
def test_a_row_that_was_refused_for_its_id_does_not_take_the_place_of_the_ids_own(
    tmp_path: Path, refused_at: int
) -> None:
    output = Folder(str(tmp_path))
    twin = {"fingerprint": None, "error_code": "duplicate_video_id"}
    rows = [
        a_result("v", "a", run="r") | {"video": "a.mp4"},
        a_result("v", "a", "failed", refused_at, run="r", **twin) | {"video": "b.mp4"},
        a_result("v", "a", "failed", refused_at, run="r", **twin) | {"video": "c.mp4"},
    ]
    store(output, "r", *rows)
    store(output, "r2", a_result("w", "a", "failed"))
    store(output, "r3", a_result("w", "a", minute=1))
    compact(output, "r3")
    kept = sorted((row["video"] or "", row["status"]) for row in all_rows(output))
    assert kept == [("", "ok"), ("a.mp4", "ok"), ("b.mp4", "failed"), ("c.mp4", "failed")]
    assert ("v", "a", "f") in done_edits(output)


def test_refused_rows_go_when_a_later_run_has_rows_in_their_place(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    store(
        output,
        "r1",
        a_result("v", "a", "failed", run="r1", fingerprint=None),
        a_result("v", "a", "failed", run="r1", fingerprint=None),
        a_result("w", None, "failed", run="r1", fingerprint=None),
        a_result("x", None, "failed", run="r1", fingerprint=None),
    )
    later = [a_result("v", "a", minute=1, run="r2"), a_result("w", "b", minute=1, run="r2")]
    store(output, "r2", *later)
    compact(output, "r2")
    left = sorted((row["video_id"], row["edit_id"], row["status"]) for row in all_rows(output))
    assert left == [("v", "a", "ok"), ("w", "b", "ok"), ("x", None, "failed")]


def test_an_edit_that_other_settings_wrote_over_is_not_done(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    store(output, "r1", a_result("v", "a", fingerprint="six"), a_result("v", "b"))
    store(output, "r2", a_result("v", "a", minute=1, fingerprint="three"))
    done = done_edits(output)
    assert len(done) == 2
    assert ("v", "a", "three") in done
    assert ("v", "b", "f") in done
    # A row that was refused, perhaps for having this one's ids, says nothing of the edit.
    store(output, "r3", a_result("v", "a", "failed", minute=2, fingerprint=None))
    assert len(done_edits(output)) == 2
    store(output, "r4", a_result("v", "a", "failed", minute=3, fingerprint="six"))
    assert len(done_edits(output)) == 1


def test_a_column_whose_type_was_changed_becomes_text(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    for run, weight in (("r1", "heavy"), ("r2", 1.5)):
        table = pa.Table.from_pylist([a_result(run, "a")], schema=SCHEMA)
        store_table(output, run, table.append_column("weight", pa.array([weight])))
    compact(output, "r2")
    assert {row["video_id"]: row["weight"] for row in all_rows(output)} == {
        "r1": "heavy",
        "r2": "1.5",
    }


def test_whole_numbers_beside_others_stay_numbers(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    for run, weight in (("r1", 1), ("r2", 1.5)):
        table = pa.Table.from_pylist([a_result(run, "a")], schema=SCHEMA)
        store_table(output, run, table.append_column("weight", pa.array([weight])))
    store(output, "r3", a_result("r1", "a", minute=1))
    compact(output, "r3")
    assert [row["weight"] for row in all_rows(output)] == [1.5, None]


def test_an_integer_that_no_float_holds_becomes_text_beside_floats(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    for run, post in (("r1", 2**53 + 1), ("r2", 1.5)):
        table = pa.Table.from_pylist([a_result(run, "a")], schema=SCHEMA)
        store_table(output, run, table.append_column("post", pa.array([post])))
    compact(output, "r2")
    assert {row["post"] for row in all_rows(output)} == {"9007199254740993", "1.5"}


def test_the_current_rows_are_those_that_compaction_leaves(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    refused = {"fingerprint": None, "error_code": "no_edits"}
    store(output, "r1", a_result("v", "a", "failed"), a_result("v", "b"))
    store(output, "r2", a_result("v", "a", minute=1), a_result("w", "c", "failed", **refused))
    before = current_rows(output)
    compact(output, "r2")
    assert before == current_rows(output) == all_rows(output)
    assert [row["edit_id"] for row in before] == ["b", "a", "c"]


@pytest.mark.parametrize("seed", range(8))
def test_current_rows_are_those_of_compaction_whatever_was_refused(
    tmp_path: Path, seed: int
) -> None:
    """Rows with the same ids, with none, refused, and copied by a compaction that was killed."""
    output, draw = Folder(str(tmp_path)), random.Random(seed)
    for run in range(4):
        rows = []
        for _ in range(draw.randint(1, 12)):
            refused = draw.choice((None, None, None, "no_edits", "duplicate_video_id"))
            values = {"error_code": refused, "fingerprint": None} if refused else {}
            edit = draw.choice((None, "a", "b")) if refused else draw.choice("abc")
            video = draw.choice(("v", "w", None) if refused else ("v", "w", "x"))
            where = draw.choice(("1.mp4", "2.mp4"))
            minute = run if draw.random() < 0.8 else 0
            row = a_result(video, edit, minute=minute, run=f"r{run}", **values)
            rows.append(row | {"video": where})
        store(output, f"r{run}", *rows)
        if draw.random() < 0.5:
            store(output, f"r{run}-copy", *rows)
    before = current_rows(output)
    compact(output, "r9")
    assert before == current_rows(output) == all_rows(output)


def test_the_columns_are_those_of_the_record() -> None:
    assert SCHEMA.names == [field.name for field in fields(EditResult)]
    assert SCHEMA.field("frames").type == SCHEMA.field("attempts").type == pa.int64()


def test_older_results_with_short_integers_are_read_and_compacted(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    assert OLDER != SCHEMA
    store_older(output, "r1", a_result("v", "a", frames=33), a_result("v", "b", "failed", frames=9))
    assert ("v", "a", "f") in done_edits(output)
    store(output, "r2", a_result("v", "b", minute=1, frames=17, attempts=2))
    assert len(done_edits(output)) == 2
    before = current_rows(output)
    compact(output, "r2")
    assert before == current_rows(output)
    assert {row["edit_id"]: row["frames"] for row in before} == {"a": 33, "b": 17}
    ((_, table),) = read_parts(output)
    assert table.schema == SCHEMA


def test_compacted_older_results_get_the_columns_of_today(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    store_older(output, "r1", a_result("v", "a", "failed", frames=33))
    store_older(output, "r2", a_result("v", "a", minute=1, frames=33))
    compact(output, "r3")
    ((_, table),) = read_parts(output)
    assert table.schema == SCHEMA


def test_results_whose_metrics_have_other_names_are_joined(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    other = pa.struct([("flicker", pa.float64()), ("sharpness", pa.float64())])
    place = SCHEMA.get_field_index("metrics")
    schema = SCHEMA.set(place, SCHEMA.field("metrics").with_type(other))
    measured = {"flicker": 0.25, "sharpness": 3.0}
    table = pa.Table.from_pylist([a_result("v", "a", metrics=measured)], schema=schema)
    store_table(output, "r1", table)
    store(output, "r2", a_result("v", "b", metrics={"flicker": 0.5}), a_result("v", "b", minute=1))
    compact(output, "r2")
    metrics = {row["edit_id"]: row["metrics"] for row in all_rows(output)}
    assert (metrics["a"]["flicker"], metrics["a"]["sharpness"]) == (0.25, 3.0)
    assert metrics["a"]["noise_std"] is None
    assert metrics["b"] is None


def test_rows_without_a_fingerprint_alone_leave_nothing_done(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    assert len(done_edits(output)) == 0
    store(output, "r1", a_result(None, None, "failed", fingerprint=None))
    assert len(done_edits(output)) == 0


def test_an_edit_of_a_video_that_moved_replaces_the_one_before(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    store(output, "r1", a_result("v", "a") | {"video": "old/v.mp4"})
    store(output, "r2", a_result("v", "a", minute=5) | {"video": "new/v.mp4"})
    assert [row["video"] for row in current_rows(output)] == ["new/v.mp4"]


def test_a_refused_row_of_an_older_run_goes_where_it_is_refused_again(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    for minute, run in enumerate(("r1", "r2")):
        store(output, run, a_result("v", "a", "failed", minute, fingerprint=None, run=run))
    assert [row["run"] for row in current_rows(output)] == ["r2"]
