"""Results: the Parquet files that say what is done, and so what is still owed.

One row for each (video_id, edit_id). A run appends files of its own as edits finish, so that a
killed run loses no more than the last seconds' rows (their edits are made again); at its end the
files are rewritten so that one row for each edit is left, the newest.

There is no other ledger: a row with status `ok` and the fingerprint that the job asks for is done,
everything else is owed.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ErrorCode
from pipeline.storage import Folder

FOLDER = "results"
ROWS_PER_FILE = 100_000
KEY_BYTES = 16

_REAL = pa.float64()
METRICS = (
    "noise_mean",
    "noise_std",
    "noise_kurtosis",
    "round_trip_db",
    "vae_psnr_db",
    "largest_residual",
    "clipped_fraction",
    "flicker",
    "flicker_source",
    "motion_agreement",
)
TIMINGS = ("read", "encode", "invert", "reconstruct", "decode", "write")

SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("edit_id", pa.string()),
        ("video", pa.string()),
        ("prompt", pa.string()),
        ("source_prompt", pa.string()),
        ("status", pa.string()),
        ("error_code", pa.string()),
        ("error", pa.string()),
        ("output", pa.string()),
        ("source", pa.string()),
        ("trajectory", pa.string()),
        ("attempts", pa.int32()),
        (
            "forwards",
            pa.struct([("inversion", _REAL), ("plain", _REAL), ("injected", _REAL)]),
        ),
        ("gpu_seconds", _REAL),
        ("timings", pa.struct([(name, _REAL) for name in TIMINGS])),
        ("metrics", pa.struct([(name, _REAL) for name in METRICS])),
        ("guidance_scale", _REAL),
        ("seed", pa.int64()),
        ("frames", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("fps", _REAL),
        ("fingerprint", pa.string()),
        ("run", pa.string()),
        ("finished_at", pa.timestamp("us", tz="UTC")),
    ]
)
"""The columns of a result row; the manifest's other columns follow them."""


class Keys:
    """A set of strings as sorted 16-byte hashes: 10^7 of them take 160 MB, in one array."""

    def __init__(self, hashes: np.ndarray) -> None:
        self.hashes = np.sort(hashes)

    @classmethod
    def of(cls, texts: Iterable[str]) -> Keys:
        return cls(np.array([_hash(text) for text in texts], dtype=f"V{KEY_BYTES}").view(_PAIR))

    def __len__(self) -> int:
        return len(self.hashes)

    def __contains__(self, text: str) -> bool:
        wanted = np.array([_hash(text)], dtype=f"V{KEY_BYTES}").view(_PAIR)
        place = int(np.searchsorted(self.hashes, wanted)[0])
        return place < len(self.hashes) and bool(self.hashes[place] == wanted[0])


_PAIR = np.dtype([("high", ">u8"), ("low", ">u8")])


def done_key(video_id: str, edit_id: str, fingerprint: str) -> str:
    """What stands for a finished edit in the set of those that are not owed."""
    return "\0".join((video_id, edit_id, fingerprint))


def read_done(output: Folder) -> Keys:
    """The keys of all edits that are done, under whatever settings."""
    columns = ["video_id", "edit_id", "fingerprint", "status"]
    return Keys.of(
        done_key(row["video_id"], row["edit_id"], row["fingerprint"])
        for _, table in read_parts(output, columns)
        for row in table.to_pylist()
        if row["status"] == "ok"
    )


def read_parts(
    output: Folder, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, pa.Table]]:
    """The files of the results, oldest run first, and what each holds."""
    for name in output.list(FOLDER):
        if name.endswith(".parquet"):
            data = pa.BufferReader(output.read(name))
            yield name, pq.ParquetFile(data).read(columns=list(columns) if columns else None)


@dataclass
class ResultWriter:
    """Appends rows of one run to the results.

    Args:
        run: sorts after the names of all earlier runs.
    """

    output: Folder
    run: str
    files: int = 0

    def write(self, tables: Sequence[pa.Table]) -> None:
        """Store rows as one more file; they are durable when this returns."""
        table = pa.concat_tables(tables, promote_options="permissive")
        if table.num_rows:
            self.output.write(f"{FOLDER}/{self.run}-{self.files:06d}.parquet", to_parquet(table))
            self.files += 1


def compact(output: Folder, run: str) -> None:
    """Leave one row for each edit, the newest, in few files.

    The new files are written before the old ones are removed. A run that is killed in between
    leaves some rows twice; `finished_at` tells which is the newer, and the next run compacts again.
    """
    columns = ["video_id", "edit_id", "finished_at", "error_code", "video"]
    order = [
        (name, place, _edit_key(row), row["finished_at"])
        for name, table in read_parts(output, columns)
        for place, row in enumerate(table.to_pylist())
    ]
    newest: dict[str, int] = {}
    for number, (_, _, key, when) in enumerate(order):
        if key not in newest or order[newest[key]][3] <= when:
            newest[key] = number
    parts = {name for name, *_ in order}
    if len(newest) == len(order) and len(parts) * ROWS_PER_FILE <= len(order) + ROWS_PER_FILE:
        return
    keep: dict[str, list[int]] = {}
    for number in sorted(newest.values()):
        keep.setdefault(order[number][0], []).append(order[number][1])
    for number, table in enumerate(_refilled(output, keep)):
        output.write(f"{FOLDER}/{run}-compact-{number:06d}.parquet", to_parquet(table))
    for name in parts:
        output.remove(name)


def _edit_key(row: dict[str, Any]) -> str:
    """What names an edit among the results.

    A row that was refused because its id is another row's must not take that row's place.
    """
    refused = row["error_code"] == ErrorCode.DUPLICATE_VIDEO_ID
    return f"{row['video_id']}\0{row['edit_id']}\0{row['video'] if refused else ''}"


def _refilled(output: Folder, keep: dict[str, list[int]]) -> Iterator[pa.Table]:
    """The rows that stay, in tables of `ROWS_PER_FILE`."""
    pending: list[pa.Table] = []
    count = 0
    for name, table in read_parts(output):
        rows = table.take(pa.array(keep.get(name, []), pa.int64()))
        pending.append(rows)
        count += rows.num_rows
        if count >= ROWS_PER_FILE:
            yield pa.concat_tables(pending, promote_options="permissive")
            pending, count = [], 0
    if count:
        yield pa.concat_tables(pending, promote_options="permissive")


def to_parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest()
