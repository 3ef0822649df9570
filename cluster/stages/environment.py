"""The environment variables of ranks, found out on their node."""

from __future__ import annotations

import os
from pathlib import Path

from cluster.layout.placement import node_gpus

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""What torch reads of its allocator's settings: the first, else one of its older names."""
CGROUPS = Path("/sys/fs/cgroup")


def rank_environment(device: str, threads: int) -> dict[str, str]:
    """Environment variables of ranks.

    Ray gives the processes of a GPU actor one OpenMP thread; here each has its share of the cores.
    Waiting OpenMP threads spin by default: beside a second busy process that slows both 40-fold.
    Segments of GPU memory that can grow are not lost to clips of other sizes.

    Args:
        threads: of each rank on CPUs.
    """
    if device == "gpu":
        threads = cores() // max(1, node_gpus())
    threads = max(1, min(threads, cores()))
    variables = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}
    if device == "gpu" and not any(name in os.environ for name in ALLOCATOR):
        variables[ALLOCATOR[0]] = "expandable_segments:True"
    return variables


def cores(cgroups: Path | None = None) -> int:
    """The cores that this process may use: of its affinity, within a container's limit."""
    allowed = len(os.sched_getaffinity(0))
    limit = _limit(cgroups or CGROUPS)
    return allowed if limit is None else max(1, min(allowed, round(limit)))


def _limit(cgroups: Path) -> float | None:
    """CPUs that a container's cgroup, of version 2 or 1, allows; None where it sets no limit."""
    try:
        if (both := cgroups / "cpu.max").exists():
            quota, period = both.read_text().split()
        else:
            quota = (cgroups / "cpu/cpu.cfs_quota_us").read_text()
            period = (cgroups / "cpu/cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # there is none; "max"
        return None
