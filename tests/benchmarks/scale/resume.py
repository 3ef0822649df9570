"""How long a run of a large manifest takes to know what is pending, and how much memory.

    python -m tests.benchmarks.scale.resume [--videos 1000000] [--edits 4]

The manifest and the results are Parquet files on this machine. `first rows` is when the first
checked rows are there for a group, `all rows` when the last ones are; reading the manifest's ids
and the results stands before both. The checkpoint and the start of Ray come on top.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.job import Job
from cluster.manifest import BATCH_ROWS, ManifestFile, ManifestFiles
from cluster.pending.done import find_answered
from cluster.pending.fingerprints import edit_keys
from cluster.pending.missing import Places
from cluster.pending.rows import PendingRows
from cluster.pending.scan import scan_manifest
from cluster.results.schema import SCHEMA
from tests.benchmarks.scale import measured_apart
from tests.small_jobs import a_job

FILES = 10
DONE = {"nothing": 0.0, "1%": 0.01, "99%": 0.99, "all": 1.0}


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--videos", type=int, default=1_000_000)
    options.add_argument("--edits", type=int, default=4)
    options.add_argument("--case", nargs=2, help="measure one, in a folder that is written")
    given = options.parse_args()
    if given.case:
        print(measured(Path(given.case[0]), given.case[1]))
        return
    print(
        f"## Resume\n\n{given.videos:,} videos with {given.edits} edits each, results in files of "
        f"{BATCH_ROWS * given.edits:,} rows, {os.cpu_count()} cores.\n\n"
        "| done | ids read, s | compared, s | first rows, s | all rows, s | rows out | "
        "refused | memory, MB |\n|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for case, done in DONE.items():
            write(Path(folder), given.videos, given.edits, done)
            print(measured_apart(__spec__.name, folder, case), end="", flush=True)
    videos = given.videos // 20
    print(f"\n{videos:,} rows that the check refuses, one edit each:\n")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), videos, 1, 0.0, edit_id="a/b")
        rows = rows_of(Path(folder))
        began = time.perf_counter()
        refused = sum(checked.refused.num_rows for checked in rows)
        print(f"{refused:,} results, {refused / (time.perf_counter() - began):,.0f} a second")


def measured(folder: Path, case: str) -> str:
    """A row of the table."""
    began = time.perf_counter()
    job = job_of(folder)
    scan = scan_manifest(job.files)
    scanned = time.perf_counter()
    rows = PendingRows(job, scan, find_answered(job, scan), places=Places.NOWHERE)
    assert rows.before <= scan.edits
    compared = time.perf_counter()
    first, out, refused = 0.0, 0, 0
    if rows.edits and case != "nothing":
        for checked in rows:
            first = first or time.perf_counter()
            out, refused = out + checked.work.num_rows, refused + checked.refused.num_rows
    elif rows.edits:  # checking all of them goes on beside the groups
        next(iter(rows))
        first = time.perf_counter()
    last = time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    columns = [scanned - began, compared - scanned, first and first - began, last - began]
    shown = [f"{seconds:.1f}" if seconds else "none" for seconds in columns]
    if case == "nothing":
        shown[-1] = ""
    return f"| {case} | {' | '.join(shown)} | {out:,} | {refused:,} | {memory:,.0f} |"


def rows_of(folder: Path) -> PendingRows:
    job = job_of(folder)
    scan = scan_manifest(job.files)
    return PendingRows(job, scan, find_answered(job, scan), places=Places.NOWHERE)


def job_of(folder: Path) -> Job:
    paths = sorted(str(path) for path in (folder / "manifest").iterdir())
    schema = pq.read_schema(paths[0])
    job = replace(a_job(), files=ManifestFiles(tuple(map(ManifestFile, paths)), schema))
    return replace(job, editing=replace(job.editing, output=str(folder / "out")))


def write(folder: Path, videos: int, edits: int, done: float, edit_id: str = "edit") -> None:
    """A manifest, and results of the first of its edits."""
    (folder / "manifest").mkdir(exist_ok=True)
    (folder / "out/results").mkdir(parents=True, exist_ok=True)
    size = -(-videos // FILES)
    for file, first in enumerate(range(0, videos, size)):
        table = manifest(range(first, min(first + size, videos)), edits, edit_id)
        pq.write_table(table, folder / f"manifest/{file:03d}.parquet")
    job = job_of(folder)
    left, file = round(videos * edits * done), 0
    for table in job.files.tables():
        keys = pa.table(edit_keys(job, job.fingerprint(), table)._asdict()).slice(0, left)
        left -= keys.num_rows
        if keys.num_rows:
            pq.write_table(results(keys), folder / f"out/results/r-{file:06d}.parquet")
        file += 1


def manifest(numbers: range, edits: int, edit_id: str) -> pa.Table:
    """Rows of a manifest: prompts of some 70 characters."""
    rows = pa.array(np.arange(numbers.start, numbers.stop)).cast(pa.string())
    names = pc.binary_join_element_wise("video-", rows, "")
    each = pa.array(np.repeat(np.arange(len(names)), edits))
    numbered = pa.array(np.tile(np.arange(edits), len(names))).cast(pa.string())
    prompt = "a red car on a road by the sea in the evening, video "
    of_edits = pa.StructArray.from_arrays(
        [
            pc.binary_join_element_wise(f"{edit_id}-", numbered, ""),
            pc.binary_join_element_wise(prompt, rows.take(each), ", style ", numbered, ""),
        ],
        ["edit_id", "prompt"],
    )
    ends = pa.array(np.arange(len(names) + 1) * edits, pa.int32())
    return pa.table(
        {
            "video": pc.binary_join_element_wise("s3://bucket/videos/", names, ".mp4", ""),
            "video_id": names,
            "source_prompt": pc.binary_join_element_wise("a car on a road, ", rows, ""),
            "edits": pa.ListArray.from_arrays(ends, of_edits),
            "split": pa.array(["train"] * len(names)),
        }
    )


def results(keys: pa.Table) -> pa.Table:
    """Result rows of edits that were made."""
    count = keys.num_rows
    known = {
        **{name: keys[name] for name in keys.column_names},
        "status": pa.array(["ok"] * count),
        "finished_at": pa.array(np.arange(count), pa.timestamp("us", "UTC")),
        "run": pa.array(["r"] * count),
    }
    columns = [known.get(f.name, pa.nulls(count, f.type)) for f in SCHEMA]
    return pa.table(columns, names=SCHEMA.names)


if __name__ == "__main__":
    main()
