"""Tables written to one file as they come: Parquet, CSV or JSON lines, by the file's ending."""

from __future__ import annotations

import json
import mmap
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.parquet as pq

from cluster.results.schema import SCHEMA, plain_rows
from jobs.errors import JobError, WrongOption
from jobs.jobfile.paths import absolute
from jobs.manifest.locations import local_path
from pipeline.storage import explain, write_file

ENDINGS = (".parquet", ".csv", ".jsonl")


class TableFile:
    """A table that is written as its rows come; nothing is written where no place was given.

    Args:
        file: a temporary one; None for none.
        ending: of the place, one of `ENDINGS`.
    """

    def __init__(self, file: BinaryIO | None, ending: str, schema: pa.Schema) -> None:
        self.file, self.ending, self.schema = file, ending, schema
        self._write: Callable[[pa.Table], Any] = lambda table: None
        self._close: Callable[[], Any] = lambda: None

    def restart(self) -> None:
        """Begin, or begin anew."""
        if self.file is None:
            return
        self.close()
        self.file.seek(0)
        self.file.truncate()
        if self.ending == ".jsonl":
            self._write, self._close = self._add_lines, lambda: None
            return
        kind = pv.CSVWriter if self.ending == ".csv" else pq.ParquetWriter
        options = {} if self.ending == ".csv" else {"compression": "zstd"}
        sink = pa.PythonFile(self.file, "w")  # stays open when the writer is closed
        writer = kind(sink, self.schema, **options)
        self._write, self._close = writer.write, writer.close

    def add(self, table: pa.Table) -> None:
        """Append rows, which have the columns of the schema."""
        if table.num_rows:
            self._write(table)

    def close(self) -> None:
        self._close()
        self._close = lambda: None

    def _add_lines(self, table: pa.Table) -> None:
        assert self.file
        for row in plain_rows(table):
            self.file.write(f"{json.dumps(row, default=str, ensure_ascii=False)}\n".encode())


@contextmanager
def written(to: str | None, columns: Sequence[str]) -> Iterator[TableFile]:
    """A table of columns of the results, stored at its place when the block has come to its end.

    Raises:
        WrongOption: the ending of its place is none of `ENDINGS`.
        JobError: it cannot be written.
    """
    schema = pa.schema([SCHEMA.field(name) for name in columns])
    if to is None:
        yield TableFile(None, "", schema)
        return
    ending = next((one for one in ENDINGS if to.lower().endswith(one)), None)
    if ending is None:
        raise WrongOption(f"--to {to}: expected a file that ends in {', '.join(ENDINGS)}")
    with stored_at_end(to, "--to") as file:
        table = TableFile(file, ending, schema)
        yield table
        table.close()


@contextmanager
def stored_at_end(to: str, option: str) -> Iterator[BinaryIO]:
    """A temporary file that is stored at a path or URI when the block has come to its end.

    Args:
        option: that named the place, for messages.

    Raises:
        JobError: it cannot be stored.
    """
    target = absolute(to)
    with tempfile.TemporaryFile() as file:
        yield cast(BinaryIO, file)
        file.flush()
        try:
            if not file.seek(0, 2):
                write_file(target, b"")
                return
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                # Clients of object storage take bytes.
                write_file(target, cast(bytes, data) if local_path(target) else data[:])
        except Exception as error:  # each storage has its own kinds of failure
            raise JobError(f"{option} {to}: {explain(error, target, 'written').text}") from error
