"""A manifest of many files, or of folders with columns, streams as one file of its rows does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.job import Job
from cluster.pending.rows import FIRST_ROWS, PendingRows
from jobs.manifest.checks import check_manifest
from tests.cluster.test_stages import a_row
from tests.pending_rows import answer, pending_of
from tests.small_jobs import a_job

COUNT = 150
SEEDS = 3


def the_rows() -> list[dict[str, Any]]:
    """Rows of each kind, sorted by their seed as a partitioned table has them."""
    rows = []
    for number in range(COUNT):
        row = a_row(f"v{number}.mp4", "red", "blue", split=f"s{number % 7}")
        row = {**row, "seed": number * SEEDS // COUNT, "fps": None, "source_prompt": None}
        if number % 10 == 3:
            row["video_id"] = "again"
        if number % 10 == 4:
            row["fps"] = -1.0
        if number % 10 == 5:
            row["edits"] = [{"prompt": " ", "edit_id": "empty"}, *row["edits"]]
        if number % 10 == 6:
            row["edits"] = []
        rows.append(row)
    return rows


def in_one_file(folder: Path, table: pa.Table) -> None:
    pq.write_table(table, folder / "m.parquet", row_group_size=64)


def in_many_files(folder: Path, table: pa.Table) -> None:
    for place, first in enumerate(range(0, COUNT, 11)):
        pq.write_table(table.slice(first, 11), folder / f"{place:03d}.parquet")


def in_hive_partitions(folder: Path, table: pa.Table) -> None:
    for seed in range(SEEDS):
        part = table.filter(pa.compute.equal(table["seed"], seed)).drop_columns(["seed"])
        (folder / f"seed={seed}").mkdir()
        half = part.num_rows // 2
        pq.write_table(part.slice(0, half), folder / f"seed={seed}/a.parquet")
        pq.write_table(part.slice(half), folder / f"seed={seed}/b.parquet")


def job_of(job: Job, folder: Path) -> Job:
    return replace(job, files=check_manifest(str(folder)).files)


def names(table: pa.Table) -> set[str]:
    return {Path(video).name for video in table["video"].to_pylist()}


def streamed(rows: PendingRows) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All work and all refused results, in order."""
    tables = list(rows)
    work = [row for checked in tables for row in checked.work.to_pylist()]
    refused = [row for checked in tables for row in checked.refused.to_pylist()]
    return work, [{**row, "finished_at": None} for row in refused]


@pytest.mark.parametrize("write", [in_many_files, in_hive_partitions])
@pytest.mark.parametrize("limit", [None, 9])
@pytest.mark.parametrize("resumed", [False, True])
def test_the_same_rows_stream_whatever_files_they_are_in(
    tmp_path: Path, write: Any, limit: int | None, resumed: bool
) -> None:
    table = pa.Table.from_pylist(the_rows())
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, how in ((one, in_one_file), (other, write)):
        folder.mkdir()
        how(folder, table)
    job = a_job()
    if resumed:
        answer(pending_of(job_of(job, one)), takes=lambda video, _: video[1] in "02468-")
    expected, found = (pending_of(job_of(job, folder), limit=limit) for folder in (one, other))
    assert found.found == expected.found
    assert (found.edits, found.before, found.amount) == (
        expected.edits,
        expected.before,
        expected.amount,
    )
    assert streamed(found) == streamed(expected)


def test_tables_grow_and_each_pass_gives_the_same(tmp_path: Path) -> None:
    in_one_file(tmp_path, pa.Table.from_pylist(the_rows()))
    rows = pending_of(job_of(a_job(), tmp_path))
    seen = [names(checked.work) | names(checked.refused) for checked in rows]
    assert list(map(len, seen)) == [FIRST_ROWS, 2 * FIRST_ROWS, COUNT - 3 * FIRST_ROWS]
    work, refused = streamed(rows)
    assert streamed(rows) == (work, refused)
    assert sum(len(row["edits"]) for row in work) + len(refused) == rows.edits
    assert [row["video"] for row in work] == sorted(
        (row["video"] for row in work), key=lambda video: int(Path(video).stem[1:])
    )
