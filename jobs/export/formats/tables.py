"""Pairs as rows of an Arrow table: the columns, their types, and the videos among them.

For formats whose files are tables. A column of the manifest may have any name and any type; here it
gets one that the readers of those formats take.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.export.formats import MEDIA, Pair
from jobs.export.values import plain

FIRST = ("key", "split")
"""Columns before the videos; those of the manifest that have such a name get another."""

VideoOf = Callable[[Pair, str], Any]


@dataclass(frozen=True)
class Layout:
    """The columns of a table of pairs.

    Args:
        schema: of the table: `FIRST`, the videos by `MEDIA`, and what is known of a pair.
        names: of the known columns, by their names in the row of a pair.
        texts: the known columns that are JSON, since no reader has their type.
        video: the value of a video that is there.
    """

    schema: pa.Schema
    names: Mapping[str, str]
    texts: frozenset[str]
    video: VideoOf

    @classmethod
    def of(
        cls,
        row: pa.Schema,
        field_of_video: Callable[[str], pa.Field],
        video: VideoOf,
        *,
        dots: bool = True,
    ) -> Layout:
        """The columns for rows of a schema.

        Args:
            dots: whether a column's name may hold some.
        """
        names: dict[str, str] = {}
        fields = [pa.field(name, pa.string()) for name in FIRST]
        fields += [field_of_video(name) for name in MEDIA]
        taken = {field.name for field in fields}
        texts = set()
        for field in row:
            name = _free(field.name if dots else field.name.replace(".", "_"), taken)
            taken.add(name)
            names[field.name] = name
            kind = stored_type(field.type)
            if kind is None:
                texts.add(field.name)
            fields.append(pa.field(name, kind or pa.string()))
        return cls(pa.schema(fields), names, frozenset(texts), video)

    def table(self, pairs: Sequence[Pair]) -> pa.Table:
        """The pairs as rows."""
        columns: dict[str, list[Any]] = {
            "key": [pair.key for pair in pairs],
            "split": [pair.split for pair in pairs],
        }
        for kind in MEDIA:
            there = [kind in pair.files for pair in pairs]
            columns[kind] = [
                self.video(pair, kind) if is_there else None
                for pair, is_there in zip(pairs, there, strict=True)
            ]
        for name, stored in self.names.items():
            values = [pair.row.get(name) for pair in pairs]
            columns[stored] = [_text(v) for v in values] if name in self.texts else values
        arrays = [_array(columns[field.name], field.type) for field in self.schema]
        return pa.Table.from_arrays(arrays, schema=self.schema)


def groups(pairs: Iterator[Pair], most_bytes: int, most_pairs: int) -> Iterator[list[Pair]]:
    """Some pairs at a time, so that few videos are in memory."""
    held: list[Pair] = []
    size = 0
    for pair in pairs:
        held.append(pair)
        size += sum(map(len, pair.files.values()))
        if size >= most_bytes or len(held) >= most_pairs:
            yield held
            held, size = [], 0
    if held:
        yield held


def stored_type(kind: pa.DataType) -> pa.DataType | None:
    """The type that a column is stored with; None for one that no reader of the formats has."""
    types = pa.types
    if types.is_null(kind) or types.is_string_view(kind):  # a later shard may have texts in it
        return pa.string()
    if types.is_dictionary(kind):
        return stored_type(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = stored_type(kind.value_type)
        return None if inner is None else pa.list_(inner)
    if types.is_struct(kind):
        inners = [(field.name, stored_type(field.type)) for field in kind]
        if not inners or any(inner is None or "." in name for name, inner in inners):
            return None
        return pa.struct(inners)
    simple = (
        types.is_boolean,
        types.is_integer,
        types.is_floating,
        types.is_string,
        types.is_large_string,
        types.is_binary,
        types.is_large_binary,
        types.is_date,
        types.is_timestamp,
        types.is_decimal128,
    )
    return kind if any(is_one(kind) for is_one in simple) else None


def _free(name: str, taken: set[str]) -> str:
    """The name, or one like it that no column has yet."""
    free, number = name or "_", 2
    if free in taken:
        name = free = f"manifest_{name}"
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


def _text(value: Any) -> str | None:
    return None if value is None else json.dumps(plain(value), ensure_ascii=False)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """An array; what Python could not hold came as text, and is none of its type."""
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, ValueError, OverflowError):
        return pa.concat_arrays([_one(value, kind) for value in values])


def _one(value: Any, kind: pa.DataType) -> pa.Array:
    try:
        return pa.array([value], kind)
    except (pa.ArrowException, ValueError, OverflowError):
        return pa.array([None], kind)
