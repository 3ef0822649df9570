"""Where the time of a job goes: mean seconds of each part of the work, from a job's results.

    python -m tests.benchmarks.trace OUTPUT

Every result row holds its edit's seconds by part; an inversion's are shared out over the edits of
its video. Parts that ran on other ranks at the same time are not added up.
"""

from __future__ import annotations

import sys
from dataclasses import asdict

from cluster.results.parts import read_parts
from pipeline.records import Timings
from pipeline.storage import Folder


def main() -> None:
    rows = [
        row
        for _, table in read_parts(Folder(sys.argv[1]), ["status", "timings", "forwards"])
        for row in table.to_pylist()
        if row["status"] == "ok"
    ]
    if not rows:
        raise SystemExit(f"{sys.argv[1]}: no edit is done")
    print(f"{len(rows)} edits\n\n| part | seconds an edit | share |\n|---|---|---|")
    means = {
        part: sum(row["timings"][part] for row in rows) / len(rows) for part in asdict(Timings())
    }
    for part, seconds in means.items():
        print(f"| {part} | {seconds:.3f} | {seconds / sum(means.values()):.1%} |")
    forwards = sum(sum(row["forwards"].values()) for row in rows) / len(rows)
    print(f"\n{forwards:.1f} forwards an edit")


if __name__ == "__main__":
    main()
