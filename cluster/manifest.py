"""The rows of a manifest: one reader with one schema, for the checks, the scan and the graph.

The files of a manifest may say the same in different types, and their folders may hold columns
(`seed=3/`). Every table that is read here has the schema of the whole, in types that every step
of the graph can carry.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import NoMemory, StorageFailed, Unreadable
from pipeline.storage import explain, open_file

BATCH_ROWS = 8192
BATCH_BYTES = 16 << 20
"""Tables of rows with large columns, such as thumbnails, have fewer rows: a run holds several."""


class Amount(NamedTuple):
    """How much a file holds: another file in its place mostly holds more or less."""

    rows: int
    bytes: int

    @classmethod
    def of(cls, stream: BinaryIO, parquet: pq.ParquetFile) -> Amount:
        return cls(parquet.metadata.num_rows, stream.seek(0, os.SEEK_END))

    def __str__(self) -> str:
        return f"{self.rows} rows in {self.bytes} bytes"


NOTHING = Amount(0, 0)


@dataclass(frozen=True)
class ManifestFile:
    """One Parquet file of a manifest.

    Args:
        partition: the columns that its folders hold, each with the value of all its rows.
        amount: its rows and bytes when the manifest was checked; None where nobody looked.
    """

    uri: str
    partition: Mapping[str, Any] = field(default_factory=dict)
    amount: Amount | None = None


@dataclass(frozen=True)
class ManifestFiles:
    """The files of a manifest, in order, and the schema that their rows are read with."""

    files: tuple[ManifestFile, ...]
    schema: pa.Schema

    def __len__(self) -> int:
        return len(self.files)

    @property
    def uris(self) -> tuple[str, ...]:
        return tuple(file.uri for file in self.files)

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows of all files, in order, in tables of at most `BATCH_ROWS` and `BATCH_BYTES`.

        Args:
            columns: only these; those that the manifest lacks are left out.
        """
        for file in self.files:
            yield from self.tables_of(file, columns)

    def tables_of(
        self, file: ManifestFile, columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """The rows of one file. Arguments as `tables` has.

        Raises:
            Unreadable: they cannot be read, or are those of another file: what is known of rows by
                their numbers does not hold for it.
        """
        try:
            yield from self._tables_of(file, columns)
        except Unreadable:
            raise
        except StorageFailed as error:
            why = explain(error, file.uri).text
            raise Unreadable(
                f"manifest {file.uri}: its rows cannot be read: {why}. Run again; what is done "
                "stays done"
            ) from error
        except MemoryError as error:
            raise NoMemory(f"manifest {file.uri}", error) from error
        except Exception as error:  # each storage has its own kinds of failure
            reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
            raise Unreadable(
                f"manifest {file.uri}: its rows cannot be read: {reason}. Write the file anew; "
                "what is done stays done"
            ) from error

    def _tables_of(self, file: ManifestFile, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        fields = [f for f in self.schema if columns is None or f.name in columns]
        with open_file(file.uri) as stream:
            parquet = pq.ParquetFile(stream)
            if file.amount and (now := Amount.of(stream, parquet)) != file.amount:
                raise Unreadable(
                    f"manifest {file.uri}: has changed since it was checked: {file.amount} then, "
                    f"{now} now. Leave a manifest as it is while a run reads it; run again: what "
                    "is done stays done"
                )
            stored = set(parquet.schema_arrow.names)
            wanted = [f.name for f in fields if f.name in stored]
            rows = _rows_at_once(parquet.metadata, wanted)
            for batch in parquet.iter_batches(rows, columns=wanted):
                arrays = [
                    convert(batch[f.name], f.type)
                    if f.name in stored
                    else _repeated(file.partition.get(f.name), f.type, batch.num_rows)
                    for f in fields
                ]
                yield pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _rows_at_once(metadata: pq.FileMetaData, columns: Sequence[str]) -> int:
    """How many rows a table has, by the size that the file says its columns have."""
    most = 0.0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        parts = [group.column(column) for column in range(group.num_columns)]
        size = sum(
            part.total_uncompressed_size
            for part in parts
            if part.path_in_schema.partition(".")[0] in columns
        )
        most = max(most, size / max(1, group.num_rows))
    return int(min(BATCH_ROWS, max(1, BATCH_BYTES // max(1.0, most))))


def _repeated(value: Any, kind: pa.DataType, count: int) -> pa.Array:
    return pa.nulls(count, kind) if value is None else pa.repeat(pa.scalar(value, kind), count)


def carried(kind: pa.DataType) -> pa.DataType:
    """The type in which the graph carries values of `kind`: the same values, plainly laid out.

    Views and list views cannot be taken row by row; a dictionary would travel whole with each row.
    """
    types = pa.types
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return carried(kind.value_type)
    if types.is_string_view(kind):
        return pa.string()
    if types.is_binary_view(kind):
        return pa.binary()
    if types.is_struct(kind):
        return pa.struct([f.with_type(carried(f.type)) for f in kind])
    if types.is_map(kind):
        return pa.map_(
            kind.key_field.with_type(carried(kind.key_type)),
            kind.item_field.with_type(carried(kind.item_type)),
            kind.keys_sorted,
        )
    if (make := _list_maker(kind)) is not None:
        return make(kind.value_field.with_type(carried(kind.value_type)))
    return kind


def _list_maker(kind: pa.DataType) -> Any:
    """What makes the plain type of a list from that of its elements; None for what is no list."""
    types = pa.types
    if types.is_list(kind) or types.is_list_view(kind):
        return pa.list_
    if types.is_large_list(kind) or types.is_large_list_view(kind):
        return pa.large_list
    if types.is_fixed_size_list(kind):
        return lambda value: pa.list_(value, kind.list_size)
    return None


def convert(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Values in another type that holds them all.

    Raises:
        pyarrow.ArrowException: it does not.
    """
    if array.type == kind:
        return array
    return _without_views(array).cast(kind)


def _without_views(array: pa.Array) -> pa.Array:
    """An array with lists for its list views, which Arrow casts wrongly where one is null."""
    kind, types = array.type, pa.types
    if "list_view" not in str(kind) or isinstance(kind, pa.BaseExtensionType):
        return array
    if types.is_struct(kind):
        inner = [_without_views(each) for each in array.flatten()]
        fields = [f.with_type(each.type) for f, each in zip(kind, inner, strict=True)]
        return pa.StructArray.from_arrays(inner, fields=fields, mask=array.is_null())
    if types.is_map(kind):
        ends = pa.array(array.offsets.to_pylist(), pa.int32())
        items = _without_views(array.items)
        return pa.MapArray.from_arrays(ends, array.keys, items, mask=array.is_null())
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_pylist()
    ends = pc.cumulative_sum(pa.array([0, *lengths], pa.int64()))
    values = _without_views(array.flatten())
    return pa.LargeListArray.from_arrays(ends, values, mask=array.is_null())


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds all values of two carried types, or None where something would be lost.

    A whole number that one writer stored as a float counts: pandas does so where some are missing.
    """
    types = pa.types
    if one == other or types.is_null(other):
        return one
    if types.is_null(one):
        return other
    if types.is_struct(one) and types.is_struct(other):
        return _common_struct(one, other)
    if types.is_map(one) and types.is_map(other):
        parts = (
            common_type(one.key_type, other.key_type),
            common_type(one.item_type, other.item_type),
        )
        return None if None in parts else pa.map_(*parts)
    if _list_maker(one) and _list_maker(other):
        element = common_type(one.value_type, other.value_type)
        return None if element is None else _common_list(one, other, element)
    if types.is_decimal(one) and types.is_decimal(other):
        return _permissive(one, other)
    for names in (("string", "large_string"), ("binary", "large_binary")):
        if {str(one), str(other)} <= set(names):
            return pa.type_for_alias(names[1])
    return _common_number(one, other) or _common_time(one, other)


def _common_struct(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The fields of both; a value lacks what its file did not have."""
    kinds = {f.name: f.type for f in one}
    for f in other:
        kind = common_type(kinds[f.name], f.type) if f.name in kinds else f.type
        if kind is None:
            return None
        kinds[f.name] = kind
    return pa.struct(list(kinds.items()))


def _common_list(one: pa.DataType, other: pa.DataType, element: pa.DataType) -> pa.DataType:
    if pa.types.is_fixed_size_list(one) and pa.types.is_fixed_size_list(other):
        if one.list_size == other.list_size:
            return pa.list_(element, one.list_size)
        return pa.list_(element)
    large = pa.types.is_large_list(one) or pa.types.is_large_list(other)
    return pa.large_list(element) if large else pa.list_(element)


def _common_number(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    types = pa.types
    whole, real = types.is_integer, types.is_floating
    if not all(whole(kind) or real(kind) for kind in (one, other)):
        return None
    if whole(one) and whole(other):
        if types.is_signed_integer(one) == types.is_signed_integer(other):
            return max(one, other, key=lambda kind: kind.bit_width)
        signed, unsigned = (one, other) if types.is_signed_integer(one) else (other, one)
        bits = max(signed.bit_width, 2 * unsigned.bit_width)
        return pa.type_for_alias(f"int{bits}") if bits <= 64 else None
    # That a float holds each whole number of 64 bits is checked when the rows are read.
    return pa.float64() if whole(one) or whole(other) else _permissive(one, other)


def _common_time(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The finer of two units; nanoseconds hold too few years for every other unit's values."""
    types = pa.types
    for same in (types.is_timestamp, types.is_duration, types.is_time):
        if same(one) and same(other):
            fine = "ns" in (getattr(one, "unit", ""), getattr(other, "unit", ""))
            return None if fine and not types.is_time(one) else _permissive(one, other)
    return None


def _permissive(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    schemas = [pa.schema({"x": kind}) for kind in (one, other)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return None
