"""What the driver exports of a run: counted from its results and from how far it has come."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sized

import pyarrow as pa

from cluster.metrics import declared
from cluster.metrics.recorder import GAUGES_S, Recorder
from cluster.progress import Counts

COLUMNS = ("status", "error_code", "attempts", "gpu_seconds", "size_bytes", "timings")
"""Of the results, that metrics are counted from."""


class RunMetrics:
    """The driver's metrics. Nothing here raises.

    Args:
        run: names the run.
        edits: results that it is to give.
    """

    def __init__(self, run: str, edits: int) -> None:
        self._record = Recorder(run)
        self._edits = edits
        self._wave: Sized = ()
        self._videos = self._prompts = 0
        self._gauges_at = float("-inf")
        for metric in (
            declared.RETRIES,
            declared.VIDEOS,
            declared.PROMPTS,
            declared.GPU_SECONDS,
            declared.BYTES,
            declared.WAVES,
        ):
            self._record.add(metric, 0)
        self._record.add(declared.EDITS, 0, status="ok", code=declared.NO_CODE)
        for part in declared.PARTS:
            self._record.add(declared.PART_SECONDS, 0, part=part)

    def begin(self, waiting: Sized) -> None:
        """A wave begins.

        Args:
            waiting: its edits without a result; it gets smaller as the wave goes on.
        """
        self._wave = waiting
        self._record.add(declared.WAVES, 1)

    def results(self, table: pa.Table) -> None:
        """Count result rows."""
        try:
            self._results(table)
        except Exception:  # what informs ends no run
            return

    def _results(self, table: pa.Table) -> None:
        add = self._record.add
        rows = {name: table[name].to_pylist() for name in COLUMNS}
        codes = [code or declared.NO_CODE for code in rows["error_code"]]
        for (status, code), times in Counter(zip(rows["status"], codes, strict=True)).items():
            add(declared.EDITS, times, status=status, code=code)
        add(declared.GPU_SECONDS, _sum(rows["gpu_seconds"]))
        add(declared.BYTES, _sum(rows["size_bytes"]))
        add(declared.RETRIES, sum(max(0, (tries or 0) - 1) for tries in rows["attempts"]))
        timings = [one for one in rows["timings"] if one]
        for part in declared.PARTS:
            add(declared.PART_SECONDS, _sum(one[part] for one in timings), part=part)

    def tick(self, counts: Counts, unstored: int, trouble: object, *, last: bool = False) -> None:
        """What holds now. Called several times a second.

        Args:
            unstored: results that are not yet stored.
            trouble: true while storage takes none.
            last: the run ends.
        """
        self._count(counts)
        now = time.monotonic()
        if now - self._gauges_at < GAUGES_S and not last:
            return
        self._gauges_at = now
        set_ = self._record.set
        left = max(0, self._edits - counts.edited - counts.failed)
        of_wave = min(left, len(self._wave))
        for queue, edits in zip(declared.QUEUES, (left - of_wave, of_wave, unstored), strict=True):
            set_(declared.QUEUE, edits, queue=queue)
        set_(declared.EXPECTED, self._edits)
        set_(declared.TROUBLE, 1 if trouble else 0)
        for groups in counts.groups:
            set_(declared.GROUPS, groups.total, stage=groups.stage)
            set_(declared.READY, groups.ready, stage=groups.stage)

    def _count(self, counts: Counts) -> None:
        """What was reported since the last tick; what is unknown for a while is not taken back."""
        if counts.inverted > self._videos:
            self._record.add(declared.VIDEOS, counts.inverted - self._videos)
            self._videos = counts.inverted
        if counts.prompts > self._prompts:
            self._record.add(declared.PROMPTS, counts.prompts - self._prompts)
            self._prompts = counts.prompts


def _sum(values: Iterable[float | None]) -> float:
    """Without the rows that have no value."""
    return sum(value or 0.0 for value in values)
