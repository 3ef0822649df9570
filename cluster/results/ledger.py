"""The ledger: which edits are done, and so which are pending.

The results are Parquet files with one row for each (video_id, edit_id). A run appends files of its
own as edits finish, so a killed run loses the rows of its last seconds at most (those edits are
made again). There is no other ledger: an edit whose newest row has status `ok` and the fingerprint
that the job asks for is done, every other edit is pending.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.results.schema import join_tables, to_parquet
from pipeline.errors import Unreadable
from pipeline.storage import Folder

FOLDER = "results"
KEY_BYTES = 16


def read_done(output: Folder) -> Keys:
    """The keys (`done_key`) of all edits that are done: the newest row of the edit is `ok`.

    An older row that was `ok` under other settings does not count: its file was written over.
    """
    columns = ["video_id", "edit_id", "fingerprint", "status", "finished_at"]
    parts = [_Outcomes.of(table) for _, table in read_parts(output, columns)]
    if not parts:
        return Keys.of(())
    edits, keys, times, ok = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((times, edits["low"], edits["high"]))
    edits = edits[order]
    newest = np.append(edits[1:] != edits[:-1], True)[: len(order)]
    return Keys(keys[order][newest & ok[order]])


def done_key(video_id: str, edit_id: str, fingerprint: str) -> str:
    """What stands for a finished edit in the set of those that are done."""
    return "\0".join((video_id, edit_id, fingerprint))


class Keys:
    """A set of strings as sorted 16-byte hashes: 10^7 of them take 160 MB, in one array.

    Args:
        hashes: [n] pairs of two uint64, in any order.
    """

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


@dataclass
class ResultWriter:
    """Appends the rows of one run to the results.

    Args:
        run: names the files; sorts after the names of all earlier runs.
        files: how many were written so far.
    """

    output: Folder
    run: str
    files: int = 0

    def write(self, tables: Sequence[pa.Table]) -> None:
        """Store rows as one more file; they are durable when this returns."""
        table = join_tables(tables)
        if table.num_rows:
            self.output.write(f"{FOLDER}/{self.run}-{self.files:06d}.parquet", to_parquet(table))
            self.files += 1


def read_parts(
    output: Folder, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, pa.Table]]:
    """The files of the results, oldest run first: the name of each and its rows."""
    for name in output.list(FOLDER):
        if name.endswith(".parquet"):
            with open_part(output, name) as file:
                yield name, file.read(columns=list(columns) if columns else None)


@contextmanager
def open_part(output: Folder, name: str) -> Iterator[pq.ParquetFile]:
    """A file of the results, to read its rows in the block.

    Raises:
        Unreadable: the file is damaged or gone; so is what the block raises where it reads.
    """
    try:
        yield pq.ParquetFile(pa.BufferReader(output.read(name)))
    except FileNotFoundError as error:
        raise Unreadable(
            f"results {output.uri}/{name}: are gone: a run that ended meanwhile has put its "
            "results together; run the same command again"
        ) from error
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        raise Unreadable(
            f"results {output.uri}/{name}: cannot be read: {reason}. Restore the file, or remove "
            "it: the edits that it lists are made again then"
        ) from error


class _Outcomes(NamedTuple):
    """Result rows as columns, [n] each.

    Args:
        edits: hashes of (video_id, edit_id).
        keys: hashes of `done_key`.
        times: when the rows were written, in microseconds.
        ok: whether the edit was made.
    """

    edits: np.ndarray
    keys: np.ndarray
    times: np.ndarray
    ok: np.ndarray

    @classmethod
    def of(cls, table: pa.Table) -> _Outcomes:
        # A row that the check refused has no fingerprint, and may have the ids of another row.
        table = table.filter(pc.field("fingerprint") != "")
        names = ("video_id", "edit_id", "fingerprint")
        ids = list(zip(*(table[name].to_pylist() for name in names), strict=True))
        return cls(
            _hashes(f"{video_id}\0{edit_id}" for video_id, edit_id, _ in ids),
            _hashes(done_key(*row) for row in ids),
            table["finished_at"].cast(pa.int64()).to_numpy(),
            pc.equal(table["status"], "ok").to_numpy(),
        )


_PAIR = np.dtype([("high", ">u8"), ("low", ">u8")])


def _hashes(texts: Iterable[str]) -> np.ndarray:
    """16 bytes of each text's hash, as pairs of numbers that sort."""
    return np.array([_hash(text) for text in texts], dtype=f"V{KEY_BYTES}").view(_PAIR)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest()
