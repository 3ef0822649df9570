"""What happened under faults: a log of lines of JSON, and the table of how long each kind took."""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADINGS = (
    "fault",
    "times",
    "the run went on",
    "recovered in s, median",
    "at most",
    "not recovered",
    "group not back",
)


@dataclass
class Log:
    """Lines of JSON, added to a file as things happen, so that a killed soak keeps them."""

    path: Path
    began: float = field(default_factory=time.monotonic)

    def add(self, event: str, **about: Any) -> None:
        line = {"at_s": round(time.monotonic() - self.began, 2), "event": event, **about}
        with self.path.open("a") as file:
            file.write(json.dumps(line, default=str) + "\n")

    def events(self) -> list[dict[str, Any]]:
        return read_log(self.path)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The events of a log; none where there is no file yet. A line cut by a kill is left out."""
    events = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def table(events: Iterable[Mapping[str, Any]]) -> str:
    """The table of recovery, in Markdown: a row for each kind of fault."""
    times: dict[str, list[float]] = defaultdict(list)
    survived: dict[str, list[bool]] = defaultdict(list)
    never: dict[str, int] = defaultdict(int)
    away: dict[str, int] = defaultdict(int)
    for event in events:
        if event["event"] == "recovered":
            times[event["kind"]].append(event["after_s"])
            survived[event["kind"]].append(event["went_on"])
            away[event["kind"]] += not event["back"]
        elif event["event"] == "not recovered":
            never[event["kind"]] += 1
            survived[event["kind"]].append(False)
    rows = [
        (
            kind,
            len(survived[kind]),
            f"{sum(survived[kind])} of {len(survived[kind])}",
            f"{statistics.median(times[kind]):.1f}" if times[kind] else "",
            f"{max(times[kind]):.1f}" if times[kind] else "",
            never[kind] or "",
            away[kind] or "",
        )
        for kind in sorted(survived)
    ]
    return _markdown([HEADINGS, *rows])


def _markdown(rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines) + "\n"
