"""The report's cards: of each video that is shown its source and its edits, from their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jobs.report.read import ONLY_THERE, OWN
from jobs.report.scores import beyond, facts, link
from pipeline.redaction import redacted

Row = Mapping[str, Any]
Numbers = Sequence[float | None]
OF_THE_OTHER = (
    "prompt", "status", "code", "error", "clip", "numbers", "mask", "accepted", "rejected",
)  # fmt: skip
"""What is shown of the other run's edit."""


@dataclass(frozen=True)
class Edit:
    """An edit that is shown.

    Args:
        row: of this run; None if only the other one has the edit.
        numbers: of this run, in the order of the page's metrics.
        there: the row of the other run, if one is compared and has the edit.
        numbers_there: the same, of the other run.
    """

    row: Row | None
    numbers: Numbers
    there: Row | None = None
    numbers_there: Numbers = ()

    @property
    def any_row(self) -> Row:
        return self.row or self.there or {}


def make_card(edits: Sequence[Edit], root: str, root_there: str) -> dict[str, Any]:
    """A video and its edits, as the page reads it.

    Args:
        edits: of one video.
        root, root_there: the output folders, as the page links to them.
    """
    rows = [edit.row for edit in edits if edit.row] or [edit.any_row for edit in edits]

    def first(name: str) -> Any:
        return next((row[name] for row in rows if row.get(name) is not None), None)

    numeric = {name for row in rows for name, value in row.items() if _is_number(value)}
    others = [name for name in rows[0] if name not in OWN | numeric]
    has_row = any(edit.row for edit in edits)
    return {
        "id": rows[0]["video_id"],
        "video": redacted(first("video")),
        "prompt": first("source_prompt"),
        "source": link(first("source"), root if has_row else root_there),
        "columns": [[name, shown(first(name))] for name in others if first(name) is not None],
        "edits": [_make_edit(edit, root, root_there) for edit in edits],
    }


def _make_edit(edit: Edit, root: str, root_there: str) -> dict[str, Any]:
    made = _outcome(edit.any_row, edit.numbers, root)
    if edit.row is None:
        made |= {"status": ONLY_THERE, "code": None, "error": None, "clip": None}
        made |= {"forwards": None, "timings": {}, "facts": {}, "mask": None}
        made |= {"accepted": None, "rejected": [], "candidates": []}
    if edit.there is not None:
        other = _outcome(edit.there, edit.numbers_there, root_there)
        made["there"] = {name: other[name] for name in OF_THE_OTHER if name in other}
    return made


def _outcome(row: Row, numbers: Numbers, root: str) -> dict[str, Any]:
    edit = {
        "id": row["edit_id"],
        "prompt": row["prompt"],
        "status": row["status"],
        "code": row["error_code"],
        "error": redacted(row["error"]),
        "clip": link(row["output"], root),
        "numbers": numbers,
        "size": [row[name] for name in ("width", "height", "frames", "fps")],
        "forwards": row["forwards"],
        "timings": {k: float(f"{v:.6g}") for k, v in (row["timings"] or {}).items() if v},
        "facts": {
            "Guidance scale": row["guidance_scale"],
            "Seed": row["seed"],
            "Attempts": row["attempts"],
            "Finished": row["finished_at"],
            "Trajectory": row["trajectory"],
            "Trajectory damage": row.get("trajectory_damage"),
            "Not measured": (row["metrics"] or {}).get("unmeasured"),
            "Fingerprint": row["fingerprint"],
            "Run": row["run"],
            **facts(row),
        },
        **beyond(row, root),
    }
    # as text: a seed has 63 bits, of which the page's numbers would lose ten
    edit["facts"] = {k: shown(v) for k, v in edit["facts"].items() if v is not None}
    return edit


def shown(value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S %Z}".rstrip()
    return f"{value:g}" if isinstance(value, float) else redacted(str(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
