"""What a row holds on its way through the graph, and how a stage makes a block of them.

A block is a `pyarrow.Table` of small values; frames, latents and trajectories go through storage.
The manifest's other columns ride along untouched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from cluster.results.schema import SCHEMA

Row = dict[str, Any]
"""A row on its way: the columns of `WORK` as Python values."""

WORK = pa.schema(
    [
        ("video_id", pa.string()),
        ("video", pa.string()),
        ("source_prompt", pa.string()),
        ("start_frame", pa.int64()),
        ("num_frames", pa.int64()),
        ("fps", pa.float64()),
        ("seed", pa.int64()),
        (
            "edits",
            pa.list_(
                pa.struct(
                    [
                        ("edit_id", pa.string()),
                        ("prompt", pa.string()),
                        ("negative_prompt", pa.string()),
                        ("guidance_scale", pa.float64()),
                        ("seed", pa.int64()),
                        ("fingerprint", pa.string()),
                        ("error_code", pa.string()),
                        ("error", pa.string()),
                    ]
                )
            ),
        ),
        ("inverted", pa.string()),
        ("owed_edits", pa.int32()),
        ("error_code", pa.string()),
        ("error", pa.string()),
        ("attempts", pa.int32()),
    ]
)
"""What a row holds between the stages. `inverted` is a `pipeline.requests.Inverted` in JSON, and
`owed_edits` the number of the video's edits that are to be made, of which a unit has some."""

RESERVED = frozenset(SCHEMA.names) | frozenset(WORK.names) - {
    "video_id",
    "video",
    "source_prompt",
    "start_frame",
    "num_frames",
    "fps",
    "seed",
    "edits",
}
"""Names that a manifest's other columns may not have, since the results have them."""


def travellers(table: pa.Table) -> list[str]:
    """The manifest's other columns."""
    return [name for name in table.column_names if name not in WORK.names]


def rebuilt(
    table: pa.Table, rows: Sequence[Row], origins: Sequence[int], schema: pa.Schema
) -> pa.Table:
    """A block of new rows, each with the other columns of the row of `table` that it came from."""
    out = pa.Table.from_pylist(list(rows), schema=schema)
    others = table.select(travellers(table)).take(pa.array(origins, pa.int64()))
    for name in others.column_names:
        out = out.append_column(others.schema.field(name), others[name])
    return out


def row_digest(row: Row) -> str:
    """What tells two manifest rows apart."""
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=repr).encode()).hexdigest()[:32]
