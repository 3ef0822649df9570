"""All metrics of a run: what the code counts, the documentation lists and the dashboard shows.

A tag has few values. What belongs to one video or one edit is in the results and in the logs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from pipeline.records import Timings

PREFIX = "ray_"
"""Ray puts it before each name."""
RUN = "run"
"""Every metric has this tag. A run is one process with series of its own, so it adds none."""


@dataclass(frozen=True)
class Metric:
    """A number that a run exports.

    Args:
        name: in the code; see `exported`.
        kind: a counter only goes up while its process lives, a gauge is what holds now.
        unit: of its values.
        tags: their names, beside `run`.
        text: what is counted.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    tags: tuple[str, ...]
    text: str

    @property
    def exported(self) -> str:
        """Its name in Prometheus."""
        return f"{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"


PARTS = tuple(field.name for field in fields(Timings))
"""The values of the tag `part`."""
QUEUES = ("manifest", "wave", "results")
"""The values of the tag `queue`, in the order in which an edit passes them."""
NO_CODE = "none"
"""The value of the tag `code` where nothing failed."""

EXPECTED = Metric("retake_expected_edits", "gauge", "edits", (), "results that the run is to give")
QUEUE = Metric(
    "retake_queue_edits",
    "gauge",
    "edits",
    ("queue",),
    "edits not yet taken from the manifest (`manifest`), those of the wave that have no result "
    "(`wave`), and results that are not yet stored (`results`)",
)
EDITS = Metric(
    "retake_edits", "counter", "edits", ("status", "code"), "results, `code` is `none` for `ok`"
)
RETRIES = Metric(
    "retake_retries",
    "counter",
    "tries",
    (),
    "attempts beyond the first, of each edit: edits that a group made together count one each",
)
VIDEOS = Metric(
    "retake_videos_inverted", "counter", "videos", (), "videos inverted, or found inverted"
)
PROMPTS = Metric(
    "retake_prompts_encoded", "counter", "prompts", (), "prompts encoded, or found encoded"
)
PART_SECONDS = Metric(
    "retake_part_seconds", "counter", "s", ("part",), "seconds of all results by part of the work"
)
GPU_SECONDS = Metric(
    "retake_gpu_seconds", "counter", "s", (), "GPU-seconds of all results; 0 on CPUs"
)
BYTES = Metric(
    "retake_edit_bytes", "counter", "bytes", (), "size of the edited videos that were made"
)
WAVES = Metric("retake_waves", "counter", "waves", (), "waves begun")
TROUBLE = Metric(
    "retake_storage_trouble", "gauge", "0 or 1", (), "1 while storage takes no results"
)
GROUPS = Metric("retake_groups", "gauge", "groups", ("stage",), "rank groups of a stage")
READY = Metric(
    "retake_groups_ready", "gauge", "groups", ("stage",), "those that have loaded what they need"
)
GROUP_SECONDS = Metric(
    "retake_group_seconds", "counter", "s", ("stage",), "seconds that a group exists"
)
BUSY_SECONDS = Metric(
    "retake_group_busy_seconds",
    "counter",
    "s",
    ("stage",),
    "those in which it works on at least one row; not while it loads",
)
RESERVED = Metric(
    "retake_reserved_gpu_seconds",
    "counter",
    "s",
    ("stage",),
    "seconds that a group exists, times the GPUs that it reserves; 0 on CPUs",
)
RESTARTS = Metric(
    "retake_group_restarts",
    "counter",
    "starts",
    ("stage",),
    "starts of a group's ranks beyond the first, such as after one died or hung",
)

METRICS = (
    EXPECTED,
    QUEUE,
    EDITS,
    RETRIES,
    VIDEOS,
    PROMPTS,
    PART_SECONDS,
    GPU_SECONDS,
    BYTES,
    WAVES,
    TROUBLE,
    GROUPS,
    READY,
    GROUP_SECONDS,
    BUSY_SECONDS,
    RESERVED,
    RESTARTS,
)
"""In the order of the documentation. Groups export the last four, the driver all others."""
