"""The columns of the results, and tables of results joined whose columns differ."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.records import EditResult, arrow_schema

SCHEMA = arrow_schema(EditResult)
"""The columns of a result row; the passthrough columns of the manifest follow them."""


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


def to_parquet(table: pa.Table) -> bytes:
    """The table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


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
    except pa.ArrowException:
        return False
    return True


def _as_text(table: pa.Table, name: str) -> pa.Table:
    if name not in table.column_names:
        return table
    texts = [value if value is None else str(value) for value in table[name].to_pylist()]
    return table.set_column(table.column_names.index(name), name, pa.array(texts, pa.string()))
