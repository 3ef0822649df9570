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
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

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
    "noise_level",
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
TIMINGS = ("read", "encode", "invert", "round_trip", "reconstruct", "decode", "write")

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
        ("trajectory_damage", pa.string()),
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
        return cls(_hashes(texts))

    def __len__(self) -> int:
        return len(self.hashes)

    def __contains__(self, text: str) -> bool:
        wanted = _hashes([text])
        place = int(np.searchsorted(self.hashes, wanted)[0])
        return place < len(self.hashes) and bool(self.hashes[place] == wanted[0])


_PAIR = np.dtype([("high", ">u8"), ("low", ">u8")])


def done_key(video_id: str, edit_id: str, fingerprint: str) -> str:
    """What stands for a finished edit in the set of those that are not owed."""
    return "\0".join((video_id, edit_id, fingerprint))


def read_done(output: Folder) -> Keys:
    """The keys of all edits that are done: of each edit the newest row counts, if it is `ok`.

    An older row may be `ok` under other settings: what it made has been written over since.
    """
    columns = ["video_id", "edit_id", "fingerprint", "status", "finished_at"]
    parts = [_Rows.of(())]
    for _, table in read_parts(output, columns):
        # What the row check refused has no fingerprint, and perhaps the ids of another row.
        parts.append(_Rows.of([row for row in table.to_pylist() if row["fingerprint"]]))
    edits, keys, times, good = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((times, edits["low"], edits["high"]))
    edits = edits[order]
    newest = np.append(edits[1:] != edits[:-1], True)[: len(order)]
    return Keys(keys[order][newest & good[order]])


class _Rows(NamedTuple):
    """Rows as columns: what names the edit, its `done_key`, when it was finished, and how."""

    edits: np.ndarray
    keys: np.ndarray
    times: np.ndarray
    good: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> _Rows:
        ids = ("video_id", "edit_id", "fingerprint")
        return cls(
            _hashes(f"{row['video_id']}\0{row['edit_id']}" for row in rows),
            _hashes(done_key(*(row[name] for name in ids)) for row in rows),
            np.array([row["finished_at"].timestamp() for row in rows], np.float64),
            np.array([row["status"] == "ok" for row in rows], np.bool_),
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
        table = together(tables)
        if table.num_rows:
            self.output.write(f"{FOLDER}/{self.run}-{self.files:06d}.parquet", to_parquet(table))
            self.files += 1


def compact(output: Folder, run: str) -> None:
    """Leave one row for each edit, the newest, in few files.

    The new files are written before the old ones are removed. A run that is killed in between
    leaves some rows twice; `finished_at` tells which is the newer, and the next run compacts again.
    """
    columns = ["video_id", "edit_id", "finished_at", "error_code", "video", "fingerprint", "run"]
    parts, rows = [], []
    for name, table in read_parts(output, columns):
        parts.append(name)
        rows += [_placed(name, at, row) for at, row in enumerate(table.to_pylist())]
    kept = _newest(rows)
    if len(kept) == len(rows) and len(parts) * ROWS_PER_FILE <= len(rows) + ROWS_PER_FILE:
        return
    keep: dict[str, list[int]] = {}
    for row in kept:
        keep.setdefault(row.part, []).append(row.at)
    for number, table in enumerate(_refilled(output, keep)):
        output.write(f"{FOLDER}/{run}-compact-{number:06d}.parquet", to_parquet(table))
    for name in parts:
        output.remove(name)


def current_rows(output: Folder) -> list[dict[str, Any]]:
    """The rows that `compact` leaves, whether or not it has run."""
    rows, placed = [], []
    for name, table in read_parts(output):
        for at, row in enumerate(table.to_pylist()):
            placed.append(_placed(name, at, row))
            rows.append(row)
    stay = {(one.part, one.at) for one in _newest(placed)}
    return [row for one, row in zip(placed, rows, strict=True) if (one.part, one.at) in stay]


class _Placed(NamedTuple):
    """A row and its place in the results.

    Args:
        edit: what names its edit. A row that was refused because its id is another row's must not
            take that row's place.
        told: whether the row says which edit it is of.
        refused: by the row check, which other rows may have been with the same ids.
    """

    part: str
    at: int
    video: str | None
    edit: str
    told: bool
    refused: bool
    run: str
    when: datetime


def _placed(part: str, at: int, row: dict[str, Any]) -> _Placed:
    copied = row["error_code"] == ErrorCode.DUPLICATE_VIDEO_ID
    edit = f"{row['video_id']}\0{row['edit_id']}\0{row['video'] if copied else ''}"
    told, refused = row["edit_id"] is not None, row["fingerprint"] is None
    run = sys.intern(row["run"] or "")
    return _Placed(part, at, row["video_id"], edit, told, refused, run, row["finished_at"])


def _newest(rows: Sequence[_Placed]) -> list[_Placed]:
    """The rows that stay, in order.

    Of the rows that name one edit the newest stays. Rows that the row check refused may have the
    same ids, or none, each being a fault of its own: all of the newest run's stay. A row of a
    video whose edits could not be told goes when a later run could tell them.
    """
    newest: dict[str, _Placed] = {}
    told: dict[str | None, str] = {}
    for row in rows:
        if row.edit not in newest or newest[row.edit].when <= row.when:
            newest[row.edit] = row
        if row.told:
            told[row.video] = max(told.get(row.video, ""), row.run)
    kept, copies = [], _Copies()
    for row in rows:
        last = newest[row.edit]
        if not row.told and told.get(row.video, "") > row.run:
            continue
        beside = row.refused and last.refused and row.run == last.run
        if row is last if not beside else copies.is_first(row):
            kept.append(row)
    return kept


class _Copies:
    """Tells a refused row from its copy, which a killed compaction leaves in another part.

    Rows of one table are finished at the same time and lie in one part; there they are counted.
    """

    def __init__(self) -> None:
        self._within: Counter[tuple[str, str, datetime]] = Counter()
        self._seen: set[tuple[str, datetime, int]] = set()

    def is_first(self, row: _Placed) -> bool:
        self._within[row.part, row.edit, row.when] += 1
        identity = (row.edit, row.when, self._within[row.part, row.edit, row.when])
        first = identity not in self._seen
        self._seen.add(identity)
        return first


def _refilled(output: Folder, keep: dict[str, list[int]]) -> Iterator[pa.Table]:
    """The rows that stay, in tables of `ROWS_PER_FILE`."""
    pending: list[pa.Table] = []
    count = 0
    for name, table in read_parts(output):
        rows = table.take(pa.array(keep.get(name, []), pa.int64()))
        pending.append(rows)
        count += rows.num_rows
        if count >= ROWS_PER_FILE:
            yield together(pending)
            pending, count = [], 0
    if count:
        yield together(pending)


def together(tables: Sequence[pa.Table]) -> pa.Table:
    """One table of all rows. A manifest's column whose type was changed since becomes text."""
    types: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for field in table.schema:
            types.setdefault(field.name, set()).add(field.type)
    for name, kinds in types.items():
        if name not in SCHEMA.names and len(kinds) > 1 and not _of_one_type(tables, name):
            tables = [_as_text(table, name) for table in tables]
    return pa.concat_tables(tables, promote_options="permissive")


def _of_one_type(tables: Sequence[pa.Table], name: str) -> bool:
    """Whether there is a type that holds a column's values of all tables.

    That of the types alone is not enough: not every whole number is one as a float.
    """
    try:
        pa.concat_tables(
            [table.select([name]) for table in tables if name in table.column_names],
            promote_options="permissive",
        )
    except pa.ArrowException:
        return False
    return True


def _as_text(table: pa.Table, name: str) -> pa.Table:
    if name not in table.column_names:
        return table
    texts = [value if value is None else str(value) for value in table[name].to_pylist()]
    return table.set_column(table.column_names.index(name), name, pa.array(texts, pa.string()))


def to_parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _hashes(texts: Iterable[str]) -> np.ndarray:
    """16 bytes of each text's hash, as pairs of numbers that sort."""
    return np.array([_hash(text) for text in texts], dtype=f"V{KEY_BYTES}").view(_PAIR)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest()
