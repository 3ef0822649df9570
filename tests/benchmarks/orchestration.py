"""What orchestration costs: rows a second and the driver's memory, with ranks that answer at once.

    python -m tests.benchmarks.orchestration [--groups ROWS ...] [--refused ROWS ...]
        [--pending ROWS ...]

A row is a video with one edit. Three ways of rows, each case in a process of its own:

- `groups`: through the graph of Ray Data, the owners of two groups (prompts, editing) and their
  rank processes, which speak the real protocol and have no model (`busy_rank`). What is left is
  what a row costs beside its model work. Rows a second and memory are those of the middle of the
  run, from a tenth of the rows to the last tick: no start or end of Ray is in them.
- `refused`: from the row check to the stored results, without a group.
- `pending`: a manifest with results of 99% of its rows: until it is known what is pending, and the
  newest result of each edit is found.

A million rows through groups would take hours here. Memory of a wave is counted in rows, and a wave
has 4,000 rows at most where there are up to 20 groups, so the driver's memory at any size is what
it has at its start, one wave of rows, and the rows of `refused`. The table says what was measured;
only the line `10^6 through groups` is calculated, from the rate of the largest measured size.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest.mock import patch

from tests.benchmarks.figures import Figure, Measured, run, say

GROUPS = (1_000, 3_000)
REFUSED = (100_000, 1_000_000)
PENDING = (100_000, 1_000_000)
SMALL = {"groups": (40, 80), "refused": (1_000, 5_000), "pending": (2_000, 4_000)}
"""For `--quick`."""
WARM = 0.1
"""The part of the rows before the middle begins."""
MILLION = 1_000_000


@dataclass(frozen=True)
class Case:
    """Rows that went one way.

    Args:
        rows: of the whole run.
        counted: rows in
        seconds: so many seconds, in which the driver's process computed for
        computed: so many seconds of a core.
        memory: bytes of the driver at the end, and
        before: at the beginning of these rows.
        most: at most.
    """

    way: str
    rows: int
    counted: int
    seconds: float
    computed: float
    memory: int
    before: int
    most: int

    @property
    def rate(self) -> float:
        return self.counted / self.seconds

    @property
    def ms(self) -> float:
        """Of the driver, for a row."""
        return 1e3 * self.computed / self.counted

    @property
    def line(self) -> str:
        return (
            f"| {self.way} | {self.rows:,} | {self.rate:,.0f} | {self.ms:.2f} | "
            f"{self.memory / 1e6:.0f} | {self.most / 1e6:.0f} |"
        )


def main() -> None:
    parser = ArgumentParser()
    for way in SMALL:
        parser.add_argument(f"--{way}", type=int, nargs="*", help="rows of each case")
    run(measure, __doc__, parser)


def measure(given: Namespace) -> Measured:
    usual = SMALL if given.quick else {"groups": GROUPS, "refused": REFUSED, "pending": PENDING}
    cases: dict[str, list[Case]] = {}
    for way, sizes in usual.items():
        own = getattr(given, way)
        cases[way] = []
        for rows in sizes if own is None else own:
            cases[way].append(found := apart(way, rows))
            say(found.line)
    return Measured(figures(cases), {"orchestration": table(cases)})


def figures(cases: dict[str, list[Case]]) -> list[Figure]:
    found = []
    for way, some in cases.items():
        for case in some:
            size = f"{way}, {case.rows:,} rows"
            found += [
                Figure(f"{size}: rate", case.rate, "rows/s", "timed"),
                Figure(f"{size}: driver, a row", case.ms, "ms", "timed"),
                Figure(f"{size}: driver's memory, at most", case.most / 1e6, "MB", "measured"),
            ]
        if len(some) > 1:
            more = bytes_a_row(some)
            note = f"between {some[0].rows:,} and {some[-1].rows:,} rows"
            found.append(
                Figure(f"{way}: driver, a row more", more / 1e3, "kB", "measured", note=note)
            )
    if cases["groups"]:
        hours = MILLION / cases["groups"][-1].rate / 3600
        note = "calculated from the largest size, one driver on these cores"
        found.append(Figure("10^6 through groups", hours, "h", "timed", note=note))
    return found


def bytes_a_row(some: Sequence[Case]) -> float:
    """What the driver grows by, from the smallest to the largest case."""
    return (some[-1].most - some[0].most) / (some[-1].rows - some[0].rows)


def table(cases: dict[str, list[Case]]) -> str:
    """Markdown."""
    lines = [
        "| way | rows | rows/s | driver, ms a row | memory at the end, MB | at most, MB |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(case.line for some in cases.values() for case in some)]) + "\n"


def apart(way: str, rows: int) -> Case:
    """A case in a process of its own, whose memory is of it alone."""
    environment = {**os.environ, "BUSY_SECONDS": "0"}
    command = [sys.executable, "-m", "tests.benchmarks.orchestration", "--case", way, str(rows)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return Case(**json.loads(done.stdout.splitlines()[-1]))


def through_groups(rows: int) -> Case:
    """Rows through the real graph; what is seen at each tick of the driver."""
    from cluster import dataflow
    from cluster.driver import graph
    from cluster.progress import Counts
    from tests.benchmarks.busy import STUBS
    from tests.benchmarks.busy import rows as manifest
    from tests.pending_rows import pending_of
    from tests.small_jobs import a_job

    seen: list[tuple[int, float, float, int]] = []

    def look(counts: Counts) -> None:
        done = counts.edited + counts.failed
        seen.append((done, time.monotonic(), time.process_time(), resident()))

    with tempfile.TemporaryDirectory() as folder:
        job = a_job(device="cpu")
        job = replace(job, editing=replace(job.editing, output=folder))
        with (
            patch.object(graph, "GROUP_STAGES", STUBS),
            patch.object(dataflow, "preflight", lambda _: []),
        ):
            counts = dataflow.run(job, pending_of(job, manifest(1, rows)), look)
    assert (counts.edited, counts.failed) == (rows, 0), counts
    last = next(one for one in seen if one[0] == rows)
    # A short run may be over between two ticks.
    first = next((one for one in seen if WARM * rows <= one[0] < rows), seen[0])
    seconds, computed = last[1] - first[1], last[2] - first[2]
    most = max(one[3] for one in seen)
    return Case("groups", rows, rows - first[0], seconds, computed, last[3], first[3], most)


def refused(rows: int) -> Case:
    """Rows that the check refuses: to the results, in this process."""
    from tests.benchmarks.scale import driver

    found = driver.Measured.read(driver.measured("refused", rows))
    now = resident()
    before = now - found.at_end
    return Case(
        "refused", rows, rows, found.seconds, found.computed, now, before, before + found.at_most
    )


def pending(rows: int) -> Case:
    """What is pending of a manifest, and the newest result of each edit."""
    from cluster.pending.done import find_answered
    from cluster.pending.missing import Places
    from cluster.pending.rows import PendingRows
    from cluster.pending.scan import scan_manifest
    from cluster.results.compaction import find_current
    from pipeline.storage import Folder
    from tests.benchmarks.scale import resume

    with tempfile.TemporaryDirectory() as folder:
        # In another process: the memory of making it is not the driver's.
        subprocess.run(
            [sys.executable, "-c", WRITE, folder, str(rows)], check=True, stdout=sys.stderr
        )
        before, began, computed = resident(), time.monotonic(), time.process_time()
        job = resume.job_of(Path(folder))
        scan = scan_manifest(job.files)
        todo = PendingRows(job, scan, find_answered(job, scan), places=Places.NOWHERE)
        assert todo.edits == rows - round(rows * 0.99)
        assert sum(checked.work.num_rows for checked in todo) == todo.edits
        current = sum(map(len, find_current(Folder(job.editing.output)).values()))
        assert current == rows - todo.edits
        seconds, computed = time.monotonic() - began, time.process_time() - computed
    return Case("pending", rows, rows, seconds, computed, resident(), before, most_resident())


WRITE = """
import sys; from pathlib import Path; from tests.benchmarks.scale import resume
resume.write(Path(sys.argv[1]), int(sys.argv[2]), 1, 0.99)
"""


def resident() -> int:
    """Bytes that this process has in memory now."""
    from tests.benchmarks.scale.driver import resident

    return resident()


def most_resident() -> int:
    """Bytes that it had at most."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


WAYS = {"groups": through_groups, "refused": refused, "pending": pending}

if __name__ == "__main__":
    if "--case" in sys.argv:
        print(json.dumps(asdict(WAYS[sys.argv[2]](int(sys.argv[3])))))
    else:
        main()
