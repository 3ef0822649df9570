"""How long a job's results take to be read and to be put together, and how many files they are.

    python -m tests.benchmarks.scale.results [--rows 1000000] [--files 20000]

`rows` results lie in files of some thousand, and a tenth of them was made again later. Then a run
stores small files of a few rows each, as it does every few seconds. All are on this machine's disk.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.results.compaction import compact, find_current
from cluster.results.merging import Merging
from cluster.results.parts import FOLDER
from cluster.results.schema import to_parquet
from pipeline.storage import Folder
from tests.benchmarks.scale import measured_apart
from tests.benchmarks.scale.resume import results

ROWS_OF_A_FILE = 4096
AGAIN = 0.1
"""The part of the edits that were made twice."""
ROWS_OF_A_SMALL_FILE = 5


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--files", type=int, default=20_000)
    options.add_argument("--case", nargs=2, help="measure one, in a folder that is written")
    given = options.parse_args()
    if given.case:
        print(measured(Path(given.case[0]), given.case[1]))
        return
    print(
        f"## Results\n\n{given.rows:,} edits, of which {AGAIN:.0%} were made twice, in files of "
        f"{ROWS_OF_A_FILE:,} rows; {os.cpu_count()} cores.\n\n"
        "| what | s | rows that stay | files after it | memory, MB |\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), given.rows)
        for case in ("find the newest rows", "put together", "put together again"):
            print(measured_apart(__spec__.name, folder, case), end="", flush=True)
    print(small_files(given.files))


def measured(folder: Path, case: str) -> str:
    """A row of the table."""
    output = Folder(str(folder))
    began = time.perf_counter()
    if case.startswith("put"):
        compact(output, "z")
        took = time.perf_counter() - began
        rows = sum(pq.read_metadata(path).num_rows for path in parts(folder))
    else:
        rows = sum(map(len, find_current(output).values()))
        took = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return f"| {case} | {took:.1f} | {rows:,} | {len(parts(folder))} | {memory:,.0f} |"


def parts(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).glob("*.parquet"))


def write(folder: Path, edits: int) -> None:
    (folder / FOLDER).mkdir()
    count = edits + round(edits * AGAIN)
    for file, first in enumerate(range(0, count, ROWS_OF_A_FILE)):
        numbers = np.arange(first, min(first + ROWS_OF_A_FILE, count)) % edits
        pq.write_table(rows(numbers, first), folder / FOLDER / f"r-{file:06d}.parquet")


def rows(numbers: np.ndarray, at: int) -> pa.Table:
    """Results of edits, four of each video."""
    of_video = pa.array(numbers // 4).cast(pa.string())
    keys = pa.table(
        {
            "video_id": pc.binary_join_element_wise("video-", of_video, ""),
            "edit_id": pc.binary_join_element_wise(
                "edit-", pa.array(numbers % 4).cast(pa.string()), ""
            ),
            "fingerprint": pa.array([f"{number:016x}" for number in numbers]),
        }
    )
    table = results(keys)
    place = table.schema.get_field_index("finished_at")
    times = pa.array(np.arange(at, at + len(numbers)), pa.timestamp("us", "UTC"))
    return table.set_column(place, table.schema.field(place), times)


def small_files(files: int) -> str:
    """What putting small files together takes while a run goes on."""
    with tempfile.TemporaryDirectory() as folder:
        output = Folder(folder)
        merging, most, began = Merging(output, "r"), 0, time.perf_counter()
        for file in range(files):
            numbers = np.arange(ROWS_OF_A_SMALL_FILE) + file * ROWS_OF_A_SMALL_FILE
            name = f"{FOLDER}/r-{file:06d}.parquet"
            output.write(name, to_parquet(rows(numbers, file)))
            merging.written(name, len(numbers))
            merging.merge()
            merging._remove(time.monotonic())  # a reader's grace would leave them for a minute
            if file % 100 == 99:
                most = max(most, len(parts(Path(folder))))
        took = time.perf_counter() - began
        left = sum(pq.read_metadata(path).num_rows for path in parts(Path(folder)))
    assert left == files * ROWS_OF_A_SMALL_FILE
    return (
        f"\n{files:,} files of {ROWS_OF_A_SMALL_FILE} rows, stored one after the other: at most "
        f"{most} files at once, {1e3 * took / files:.1f} ms a file with what puts them together\n"
    )


if __name__ == "__main__":
    main()
