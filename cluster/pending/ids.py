"""The ids and the edits of manifest rows, by columns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.results.schema import plain_values
from cluster.rows import default_video_id


class Edits(NamedTuple):
    """The edits of a table's rows, one after the other.

    Args:
        values: structs, or whatever the manifest has in their place, [edits].
        rows: the row of the table that each stands in, [edits].
        counts: how many each row has, [rows].
    """

    values: pa.Array
    rows: np.ndarray
    counts: np.ndarray


def edits_of(table: pa.Table) -> Edits:
    """The edits of a table's rows; a row that has null in place of a list has none."""
    if "edits" not in table.column_names or pa.types.is_null(table.schema.field("edits").type):
        return Edits(pa.nulls(0), np.zeros(0, np.int64), np.zeros(table.num_rows, np.int64))
    column = table["edits"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # older versions of Arrow
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0, column.type)
    rows = pc.list_parent_indices(column).to_numpy(zero_copy_only=False).astype(np.int64)
    return Edits(pc.list_flatten(column), rows, np.bincount(rows, minlength=table.num_rows))


def video_ids(table: pa.Table) -> list[str | None]:
    """The `video_id` of each row, given or by default; None where it has none."""
    given, videos = (column_of(table, name) for name in ("video_id", "video"))
    return [_video_id(one, video) for one, video in zip(given, videos, strict=True)]


def column_of(table: pa.Table, name: str) -> list[object]:
    """The values of a column of the manifest; None for each where it has none of that name."""
    if name not in table.column_names:
        return [None] * table.num_rows
    return plain_values(table[name])


def _video_id(given: object, video: object) -> str | None:
    if isinstance(given, str):
        return given
    if given is None and isinstance(video, str) and video.strip():
        return default_video_id(video)
    return None
