"""Gives numbers to Ray, which gives them to Prometheus. Nothing here raises, waits or ends a run.

Ray collects what a process records every `metrics_report_interval_ms` (10 s) and when the process
ends, in the agent of its node. There counters stay, also those of processes that ended, and gauges
go when they are not recorded again within two intervals: who sets a gauge sets it every second.
"""

from __future__ import annotations

import math
import sys
from functools import cache
from typing import Any

from cluster.metrics.declared import RUN, Metric

GAUGES_S = 1.0
"""So often a gauge is set, also where it has not changed."""


class Recorder:
    """Records the metrics of one run in this process; without Ray it does nothing.

    Args:
        run: names the run.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._off = False

    def add(self, metric: Metric, value: float, **tags: str) -> None:
        """Add to a counter. Adding 0 says that it is there: Prometheus sees the first step then."""
        if value >= 0:  # no NaN, and nothing that would take a counter back
            self._record(metric, value, tags)

    def set(self, metric: Metric, value: float, **tags: str) -> None:
        """Set a gauge."""
        self._record(metric, value, tags)

    def _record(self, metric: Metric, value: float, tags: dict[str, str]) -> None:
        if self._off or not math.isfinite(value) or not _in_ray():
            return
        try:
            # Not `inc` and `set`: they take no 0.
            _of_ray(metric)._record(float(value), {RUN: self._run, **tags})
        except Exception:  # another version of Ray: the run goes on without metrics
            self._off = True


def _in_ray() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@cache
def _of_ray(metric: Metric) -> Any:
    from ray.util import metrics

    kind = metrics.Counter if metric.kind == "counter" else metrics.Gauge
    return kind(metric.name, metric.text, tag_keys=(RUN, *metric.tags))
