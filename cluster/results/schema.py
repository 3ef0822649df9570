"""The columns of the results, and tables of results joined whose columns differ."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.records import EditResult, arrow_schema

SCHEMA = arrow_schema(EditResult)
"""The columns of a result row; the passthrough columns of the manifest follow them."""


NEW_WITH_SCORES = {"instruction", "mask", "scores", "accepted", "rejected_for"}
NEW_WITH_SCORES |= {"candidate", "candidates", "round"}
"""Columns that came with `scores`: before, one of such a name was the manifest's own."""
OF_THE_MANIFEST = "manifest_"
"""What is put before these names."""
IDENTITY = ("video_id", "edit_id", "status", "fingerprint", "run", "finished_at")
"""The columns without which a row says nothing; every version wrote them."""


def join_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """One table of all rows, with the columns of all tables; a row is null where it had none.

    Columns of `SCHEMA` get its type: older files have integers of 32 bits. A passthrough column
    whose type changed between two runs gets the wider type, and text where no type holds both.
    """
    tables = [_as_declared(table) for table in tables]
    names = {name for table in tables for name in table.column_names}
    for name in sorted(names - set(SCHEMA.names)):
        if not _has_common_type(tables, name):
            tables = [_as_text(table, name) for table in tables]
    return pa.concat_tables(tables, promote_options="permissive")


def foreign(schema: pa.Schema) -> str | None:
    """Why a file is none of results, as the end of a sentence about it; None where it is one.

    Columns that were declared later than the file was written may be missing.
    """
    if missing := [name for name in IDENTITY if name not in schema.names]:
        return f"has no column {missing[0]!r}; expected a file of results"
    for field in schema:
        declared = SCHEMA.field(field.name) if field.name in SCHEMA.names else field
        if not _may_be(field.type, declared.type):
            return f"has a column {field.name!r} of {field.type}; expected {declared.type}"
    return None


def names_of_today(schema: pa.Schema) -> list[str]:
    """The names of a file's columns; those of the manifest that are names of results by now, in a
    file from before, begin with `manifest_`."""
    place = schema.get_field_index("scores")
    scores = schema.field(place).type if place >= 0 else pa.null()
    if pa.types.is_struct(scores) and scores.get_field_index("frames") >= 0:
        return list(schema.names)
    return [_of_the_manifest(one, schema.names) for one in schema.names]


def to_parquet(table: pa.Table) -> bytes:
    """The table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows as plain values, and as text where Python cannot hold one.

    That is the year 10000, and a string of other bytes than UTF-8.
    """
    columns = [plain_values(table[name]) for name in table.column_names]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def plain_values(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column as `plain_rows` has them."""
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        return [_plain(value) for value in column]


def _plain(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        if pa.types.is_nested(value.type):
            return "a value with bytes that are not UTF-8"
        return value.as_buffer().to_pybytes().decode(errors="backslashreplace")
    except (ValueError, OverflowError):
        return " ".join(str(pa.array([value], value.type)).split()).strip("[ ]")


def _of_the_manifest(name: str, taken: Sequence[str]) -> str:
    if name not in NEW_WITH_SCORES:
        return name
    while name in taken:
        name = OF_THE_MANIFEST + name
    return name


def _may_be(kind: pa.DataType, declared: pa.DataType) -> bool:
    """Whether a column of one type holds what one of the declared type does."""
    families = (
        pa.types.is_nested,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_timestamp,
        lambda one: pa.types.is_string(one) or pa.types.is_large_string(one),
    )
    return kind in (declared, pa.null()) or any(is_a(kind) and is_a(declared) for is_a in families)


def _as_declared(table: pa.Table) -> pa.Table:
    """A table with the declared types; structs, which `concat_tables` merges by name, stay."""
    fields = [
        field
        if field.name not in SCHEMA.names or pa.types.is_nested(field.type)
        else field.with_type(SCHEMA.field(field.name).type)
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


def _has_common_type(tables: Sequence[pa.Table], name: str) -> bool:
    """Whether one type holds a column's values of all tables.

    It is tried on the values: a float holds some integers and not others.
    """
    columns = [table.select([name]) for table in tables if name in table.column_names]
    if len({column.schema.field(name).type for column in columns}) == 1:
        return True
    try:
        pa.concat_tables(columns, promote_options="permissive")
    except MemoryError:  # an ArrowException, which says nothing of the types
        raise
    except pa.ArrowException:
        return False
    return True


def _as_text(table: pa.Table, name: str) -> pa.Table:
    if name not in table.column_names:
        return table
    texts = [value if value is None else str(value) for value in plain_values(table[name])]
    return table.set_column(table.column_names.index(name), name, pa.array(texts, pa.string()))
