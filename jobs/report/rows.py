"""The report's reading of the results: Parquet rows in, one card for each video out."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from cluster.results.compaction import current_rows
from cluster.results.schema import SCHEMA
from jobs.errors import JobError
from pipeline.errors import ErrorCode
from pipeline.storage import Folder

Row = Mapping[str, Any]

_OWN = frozenset(SCHEMA.names)  # all other columns came with the manifest or were added later
_DIGITS = 6  # significant ones; more would double the size of the page's data


def read_rows(output: Folder) -> list[Row]:
    """The newest row of each edit, ordered by video and edit as a person would order them.

    Raises:
        JobError: the output folder holds no results.
    """
    rows = current_rows(output)
    if not rows:
        raise JobError(
            f"{output.uri}: no rows in results/*.parquet; a report shows a job's results, so run "
            "the job first, with the same output folder"
        )
    return sorted(rows, key=lambda r: (_natural(r["video_id"]), _natural(r["edit_id"])))


def numbers_of(row: Row) -> dict[str, float | None]:
    """Every number of a row that edits can be compared by."""
    forwards = [count for count in (row["forwards"] or {}).values() if count is not None]
    numbers: dict[str, Any] = {
        **{name: value for name, value in row.items() if name not in _OWN},
        **(row["metrics"] or {}),
        "gpu_seconds": row["gpu_seconds"] or None,  # none on a CPU
        "forwards": sum(forwards) if forwards else None,
    }
    return {key: _rounded(value) for key, value in numbers.items() if is_number(value)}


def make_card(rows: Sequence[Row], numbers: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """A video and its edits, as the page reads it.

    Args:
        rows: of one video.
        numbers: of each row, in the order of the page's metrics.
    """

    def first(name: str) -> Any:
        return next((row[name] for row in rows if row.get(name) is not None), None)

    numeric = {name for row in rows for name, value in row.items() if is_number(value)}
    others = [name for name in rows[0] if name not in _OWN | numeric]
    return {
        "id": rows[0]["video_id"],
        "video": first("video"),
        "prompt": first("source_prompt"),
        "source": _link(first("source")),
        "columns": [[name, shown(first(name))] for name in others if first(name) is not None],
        "edits": [_make_edit(*both) for both in zip(rows, numbers, strict=True)],
    }


def _make_edit(row: Row, numbers: Sequence[float | None]) -> dict[str, Any]:
    edit = {
        "id": row["edit_id"],
        "prompt": row["prompt"],
        "status": row["status"],
        "code": row["error_code"],
        "error": row["error"],
        "clip": _link(row["output"]),
        "numbers": numbers,
        "size": [row[name] for name in ("width", "height", "frames", "fps")],
        "forwards": row["forwards"],
        "timings": {k: _rounded(v) for k, v in (row["timings"] or {}).items() if v},
        "facts": {
            "Guidance scale": row["guidance_scale"],
            "Seed": row["seed"],
            "Attempts": row["attempts"],
            "Finished": row["finished_at"],
            "Trajectory": row["trajectory"],
            "Trajectory damage": row.get("trajectory_damage"),
            "Fingerprint": row["fingerprint"],
            "Run": row["run"],
        },
    }
    # as text: a seed has 63 bits, of which the page's numbers would lose ten
    edit["facts"] = {k: shown(v) for k, v in edit["facts"].items() if v is not None}
    return edit


def by_video(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each video, in order."""
    videos: defaultdict[tuple[str | None, str | None], list[Row]] = defaultdict(list)
    for row in rows:
        # Another video may have its id, or none: that is what is wrong with it.
        other = row["video_id"] is None or row["error_code"] == ErrorCode.DUPLICATE_VIDEO_ID
        videos[row["video_id"], row["video"] if other else None].append(row)
    return list(videos.values())


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S %Z}".rstrip()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _link(path: str | None) -> str | None:
    """A path in the output folder as the page, in its subfolder, links to it."""
    return None if path is None else "../" + quote(path)


def _rounded(value: Any) -> float | None:
    if value is None or math.isnan(value):
        return None
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _natural(text: str | None) -> tuple[list[Any], str]:
    """Sorts `clip-10` after `clip-9`."""
    text = text or ""
    parts = re.split(r"([0-9]{1,18})", text)  # every second part is a number
    return [int(part) if at % 2 else part for at, part in enumerate(parts)], text
