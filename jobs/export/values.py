"""What is known of a pair, as JSON and as cells of a table."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from jobs.export.rows import quoted


def as_json(row: Mapping[str, Any]) -> bytes:
    """The values as a JSON object; numbers that JSON does not have are null, moments are ISO
    8601, and bytes are base64."""
    return json.dumps(plain(row), ensure_ascii=False, allow_nan=False).encode()


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def ending_of(name: str) -> str:
    """The ending of a file, as `.mp4`; "" for none."""
    last = name.rpartition("/")[2]
    return f".{last.rpartition('.')[2]}" if "." in last else ""


def leaves(name: str, asked: str, kind: pa.DataType) -> Iterator[tuple[str, str]]:
    """The columns that `flat` makes of one: the name of each, and what asks for it in SQL."""
    if not pa.types.is_struct(kind):
        yield name, asked
        return
    for inner in kind:
        yield from leaves(f"{name}.{inner.name}", f"{asked}.{quoted(inner.name)}", inner.type)


def flat(row: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The values by dotted names, as `scores.frames.change`; lists as JSON, None as it is."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{before}{name}", json.dumps(plain(value), ensure_ascii=False)
        else:
            yield f"{before}{name}", plain(value)
