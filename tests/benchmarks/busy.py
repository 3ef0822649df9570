"""How busy rank groups are in a real graph of Ray Data, with ranks that sleep in place of a model.

    python -m tests.benchmarks.busy

Each run has as many groups as its cluster says that it has GPUs, in the layout that `auto` takes.
Every rank writes down when it worked; the table says for what part of the groups' time, between the
first request and the end of the last one, some rank of each did. A plain forward takes `FORWARD_S`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa

from cluster import dataflow
from cluster.driver import graph
from cluster.stages import group
from cluster.stages.edit import EditVideos, ReconstructEdits
from cluster.stages.group import GroupStage
from cluster.stages.invert import InvertVideos
from cluster.stages.prompts import EncodePrompts
from tests.benchmarks.busy_rank import SECONDS
from tests.pending_rows import pending_of
from tests.small_jobs import a_job

FORWARD_S = 0.01
TARGET = 0.95
RUNS = ((1, 4, 10), (2, 4, 24), (8, 4, 64), (8, 16, 24), (8, 64, 5))
"""Groups, edits a video, videos."""


def main() -> None:
    lines = [
        f"A plain forward takes {FORWARD_S * 1000:g} ms; {os.cpu_count()} cores, {date.today()}.",
        "",
        "| groups | edits a video | videos | layout | seconds | busy |",
        "|---|---|---|---|---|---|",
    ]
    missed = []
    for groups, edits, videos in RUNS:
        layout, seconds, part = measured(groups, edits, videos)
        line = f"| {groups} | {edits} | {videos} | {layout} | {seconds:.1f} | {part:.1%} |"
        lines.append(line)
        print(line, flush=True)
        if layout == "shared" and part < TARGET:
            missed.append(line)
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")
    sys.exit(bool(missed))


def measured(groups: int, edits: int, videos: int) -> tuple[str, float, float]:
    """A run: its layout, its seconds, and for what part of them its groups were busy."""
    import ray

    os.environ[SECONDS] = str(FORWARD_S)
    with tempfile.TemporaryDirectory() as folder:
        job = a_job()
        job = replace(job, editing=replace(job.editing, output=folder))
        ray.init(num_cpus=4, num_gpus=groups, include_dashboard=False, log_to_driver=False)
        try:
            patch.object(graph, "GROUP_STAGES", STUBS).start()
            patch.object(dataflow, "preflight", lambda _: []).start()
            counts = dataflow.run(job, pending_of(job, rows(edits, videos)), lambda _: None)
        finally:
            patch.stopall()
            ray.shutdown()
        assert (counts.edited, counts.failed) == (edits * videos, 0)
        spans = [
            tuple(map(float, line.split()))
            for log in Path(folder).glob("busy-*")
            for line in log.read_text().splitlines()
        ]
        layout = "shared" if counts.groups[-1].stage == "editing" else "split"
        seconds = max(end for _, end in spans) - min(began for began, _ in spans)
        return layout, seconds, sum(end - began for began, end in spans) / (groups * seconds)


def rows(edits: int, videos: int) -> pa.Table:
    """A manifest."""
    prompts = [{"prompt": f"edit {i}", "edit_id": f"e{i}"} for i in range(edits)]
    return pa.Table.from_pylist(
        [{"video": f"v{i}.mp4", "video_id": f"v{i}", "edits": prompts} for i in range(videos)]
    )


def stub(stage: type[GroupStage]) -> type[GroupStage]:
    """A stage whose ranks sleep."""

    class Stub(stage):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any) -> None:
            command = [sys.executable, "-m", "tests.benchmarks.busy_rank"]
            patch.object(group, "rank_command", lambda: command).start()
            super().__init__(*args)

    Stub.__name__ = stage.__name__
    return Stub


STUBS = {
    stage.name: stub(stage) for stage in (EncodePrompts, InvertVideos, ReconstructEdits, EditVideos)
}

if __name__ == "__main__":
    main()
