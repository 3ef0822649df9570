"""Where the time of a job goes: mean seconds of each part of the work, from a job's results.

    python -m tests.benchmarks.trace OUTPUT

Every result row holds its edit's seconds by part; an inversion's are shared out over the edits of
its video. Parts that ran on other ranks at the same time are not added up.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cluster.results.parts import read_parts
from pipeline.records import Timings
from pipeline.storage import Folder


def main() -> None:
    rows = done(Folder(sys.argv[1]))
    if not rows:
        raise SystemExit(f"{sys.argv[1]}: no edit is done")
    print(f"{len(rows)} edits\n\n{table(rows)}")
    forwards = sum(sum(row["forwards"].values()) for row in rows) / len(rows)
    print(f"{forwards:.1f} forwards an edit")


def done(output: Folder) -> list[dict[str, Any]]:
    """What the results say of the edits that were made."""
    return [
        row
        for _, table in read_parts(output, ["status", "timings", "forwards"])
        for row in table.to_pylist()
        if row["status"] == "ok"
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: the mean of each part."""
    means = {
        part: sum(row["timings"][part] for row in rows) / len(rows) for part in asdict(Timings())
    }
    lines = ["| part | seconds an edit | share |\n|---|---|---|"]
    for part, seconds in means.items():
        lines.append(f"| {part} | {seconds:.3f} | {seconds / sum(means.values()):.1%} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
