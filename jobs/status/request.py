"""The request to a run to end in order, as a small file in its output folder.

It names the run that it is for, so that a later run is not ended by it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime

from pipeline.storage import Folder, from_json

NAME = "stop.json"


@dataclass(frozen=True)
class StopRequest:
    """Asks a run to end.

    Args:
        run: its name.
        by: who asks, as `ann on node-3`.
        at: when, UTC by the clock of that machine.
    """

    run: str
    by: str
    at: str

    @classmethod
    def now(cls, run: str, by: str) -> StopRequest:
        return cls(run, by, datetime.now(UTC).isoformat(timespec="seconds"))

    def write(self, output: Folder) -> None:
        """Raises StorageFailed where the storage does not take it."""
        output.write(NAME, json.dumps(asdict(self), indent=1).encode())


def request_in(output: Folder) -> StopRequest | None:
    """The request in an output folder; None where there is none, or a damaged one.

    Raises:
        StorageFailed: storage does not say.
    """
    try:
        values = from_json(output.read(NAME))
        return StopRequest(**{one.name: str(values[one.name]) for one in fields(StopRequest)})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
