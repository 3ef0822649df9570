"""Writing a manifest."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.manifest.files import refusal
from jobs.manifest.schema import SCHEMA
from pipeline.storage import write_file


def write_manifest(rows: pa.Table | Iterable[Mapping[str, Any]], uri: str) -> None:
    """Write a manifest as one Parquet file (zstd).

    All of SCHEMA's columns come first, in its order, then the others as they first occur. A list
    of rows may hold anything JSON in its other columns: one that mixes types or holds objects is
    stored as JSON text.

    Raises:
        ManifestError: no rows, a value that does not fit its column, or the storage refuses.
    """
    columns = _columns_of(rows)
    count = len(next(iter(columns.values()), ()))
    if not count:
        raise refusal(uri, ["there are no rows"], "written")
    arrays, problems = {}, []
    for name in dict.fromkeys([*SCHEMA.names, *columns]):
        try:
            arrays[name] = _column(name, columns.get(name, [None] * count))
        except MemoryError:  # Arrow's is an ArrowException too
            raise
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            problems.append(f"column {name!r}: {error}")
    if None in columns.get("video", [None]):
        problems.append("column 'video': a row has none; expected a path or URI in each")
    if problems:
        raise refusal(uri, problems, "written")
    passthrough = [pa.field(n, a.type) for n, a in arrays.items() if n not in SCHEMA.names]
    table = pa.Table.from_arrays(list(arrays.values()), schema=pa.schema([*SCHEMA, *passthrough]))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    try:
        write_file(uri, buffer.getvalue())
    except Exception as error:  # each storage has its own kinds of failure
        raise refusal(uri, [f"{type(error).__name__}: {error}"], "written") from error


def _columns_of(rows: pa.Table | Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The values of each column, those of the manifest's own columns as Python values."""
    if isinstance(rows, pa.Table):
        columns = {name: rows[name] for name in rows.column_names}
        return columns | {n: c.to_pylist() for n, c in columns.items() if n in SCHEMA.names}
    records = list(rows)
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def _column(name: str, values: Any) -> pa.Array | pa.ChunkedArray:
    if name in SCHEMA.names:
        return pa.array(values, SCHEMA.field(name).type)
    if isinstance(values, pa.ChunkedArray):
        return values
    try:
        array = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
        array = None
    if array is None or "struct<" in str(array.type):
        # Arrow would give every object the keys of all the others
        return pa.array([v if v is None else _json_text(v) for v in values], pa.string())
    return array.cast(pa.string()) if pa.types.is_null(array.type) else array


def _json_text(value: Any) -> str:
    """A string as it is, and anything else as JSON; so a string that has no bytes, too."""
    if isinstance(value, str):
        with suppress(UnicodeEncodeError):  # half of a surrogate pair
            value.encode()
            return value
    return json.dumps(value, default=str)
