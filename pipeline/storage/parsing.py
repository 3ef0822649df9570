"""JSON that anybody may have written."""

from __future__ import annotations

import json
from typing import Any


def from_json(data: str | bytes) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: it is no JSON, or so deeply nested that Python's own reader ends with a
            RecursionError, which no reader of files expects.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise json.JSONDecodeError("is nested too deeply", "", 0) from None
