"""What a row holds on its way through the graph, and how a stage makes a block of them.

A block is a `pyarrow.Table` of small values; frames, latents and trajectories go through storage.
The manifest's other columns, the passthrough columns, stay as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from cluster.ranks.messages import Answer
from cluster.results.schema import SCHEMA, plain_rows
from pipeline.errors import ErrorCode
from pipeline.records import (
    EditResult,
    EditSpec,
    InversionResult,
    VideoSpec,
    arrow_schema,
    from_dict,
)


@dataclass(frozen=True)
class EditWork(EditSpec):
    """An edit on its way: pending, or refused by the row check.

    Args:
        prompt: None where a refused edit has none.
        fingerprint: of everything that changes the edit; None for a refused one.
        error_code, error: why it was refused; None for a pending one.
    """

    prompt: str | None = None  # type: ignore[assignment]
    fingerprint: str | None = None
    error_code: ErrorCode | None = None
    error: str | None = None

    @property
    def pending(self) -> bool:
        return not self.error_code

    def spec(self) -> EditSpec:
        """What a rank must know of it."""
        return EditSpec(**{f.name: getattr(self, f.name) for f in fields(EditSpec)})


@dataclass(frozen=True)
class VideoWork(VideoSpec):
    """A video on its way, with some or all of its edits.

    Args:
        video: None where a refused row has none.
        inversion_result: what came of its inversion.
        inversion_seconds: how long that held its group, whatever came of it.
        pending_edits: how many of the video's edits are pending; a unit of work has some of them.
        left_pending: how many pending edits of the video this run does not take.
        error_code, error: why nothing of it can be made.
        attempts: how often its group was asked.
    """

    video: str | None = None  # type: ignore[assignment]
    edits: tuple[EditWork, ...] = ()
    inversion_result: InversionResult | None = None
    inversion_seconds: float = 0.0
    pending_edits: int = 0
    left_pending: int = 0
    error_code: ErrorCode | None = None
    error: str | None = None
    attempts: int = 0

    @property
    def pending(self) -> bool:
        """Whether a group has something to do for it."""
        return not self.error_code and any(edit.pending for edit in self.edits)

    def failed(self, answer: Answer) -> VideoWork:
        """The same with the error of an answer."""
        return replace(self, error_code=answer.error_code, error=answer.error)

    def inverted(self, answer: Answer, tries: int) -> VideoWork:
        """The same with its inversion, or with the error that leaves it without.

        Args:
            tries: how often the group was asked.
        """
        video = replace(self, attempts=tries, inversion_seconds=answer.seconds)
        if answer.error_code:
            return video.failed(answer)
        return replace(video, inversion_result=from_dict(InversionResult, answer.result))

    def spec(self) -> VideoSpec:
        """What a rank must know of it: its pending edits and no others."""
        values = {f.name: getattr(self, f.name) for f in fields(VideoSpec)}
        return VideoSpec(**values | {"edits": tuple(e.spec() for e in self.edits if e.pending)})


QUARANTINED = (ErrorCode.RANK_DIED, ErrorCode.DEADLINE)
WORK = arrow_schema(VideoWork)
RESERVED = frozenset(SCHEMA.names) | frozenset(WORK.names) - {f.name for f in fields(VideoSpec)}
"""Names that a passthrough column may not have, since the results or the blocks have them."""


def passthrough(table: pa.Table) -> list[str]:
    """The manifest's other columns."""
    return [name for name in table.column_names if name not in WORK.names]


def work_of(table: pa.Table) -> list[VideoWork]:
    """The rows of a block."""
    return [from_dict(VideoWork, row) for row in table.select(WORK.names).to_pylist()]


def rebuilt(
    table: pa.Table, records: Sequence[Any], origins: Sequence[int], schema: pa.Schema = WORK
) -> pa.Table:
    """A block of new records, each with the passthrough columns of the row that it came from.

    Args:
        origins: for each record, the row of `table`.
    """
    out = pa.Table.from_pylist([asdict(record) for record in records], schema=schema)
    others = table.select(passthrough(table)).take(pa.array(origins, pa.int64()))
    for name in others.column_names:
        out = out.append_column(others.schema.field(name), others[name])
    return out


OF_THE_EDIT = ("edit_id", "prompt", "instruction", "fingerprint")
"""What a result row has of the edit that was asked for."""


def result_of(video: VideoWork, edit: EditWork, known: EditResult, run: str) -> EditResult:
    """The result row of an edit.

    Args:
        known: what came of it, or what went wrong.
        run: names the run.
    """
    return replace(
        known,
        **{name: getattr(video, name) for name in ("video_id", "video", "source_prompt")},
        **{name: getattr(edit, name) for name in OF_THE_EDIT},
        status=_status(known.error_code),
        run=run,
        finished_at=datetime.now(UTC),
    )


def _status(code: ErrorCode | None) -> str:
    if code is None:
        return "ok"
    return "quarantined" if code in QUARANTINED else "failed"


def manifest_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The manifest's own columns of a table's rows, as plain values.

    Not the passthrough columns: they may hold what Python cannot, such as the year 10000.
    """
    names = [field.name for field in fields(VideoSpec) if field.name in table.column_names]
    return plain_rows(table.select(names)) if names else [{} for _ in range(table.num_rows)]


def row_digest(table: pa.Table, place: int) -> str:
    """What tells two manifest rows apart: a hash of all columns of one row."""
    (row,) = plain_rows(table.slice(place, 1))
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=repr).encode()).hexdigest()[:32]
