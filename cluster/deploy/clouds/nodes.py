"""Wait until the nodes of a job are in Ray's cluster: `python -m cluster.deploy.clouds.nodes`.

The machines of a cloud come one after the other. A job with fixed groups is refused where there
are too few nodes, and one with `auto` would begin with those that are there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.redaction import say

EVERY_S = 2.0
LINE_EVERY_S = 20.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 the nodes are there, 1 they were not in time."""
    parser = argparse.ArgumentParser(prog="nodes", description="Wait for nodes of Ray's cluster.")
    parser.add_argument("--nodes", type=int, required=True, help="how many")
    parser.add_argument("--gpus", type=int, default=0, help="that each has at least")
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="how long to wait")
    wanted = parser.parse_args(arguments)
    import ray

    ray.init(address="auto", log_to_driver=False, logging_level="WARNING")
    try:
        there = wait_for(wanted.nodes, wanted.gpus, wanted.timeout_s, ray.nodes)
    finally:
        ray.shutdown()
    return 0 if there else 1


def wait_for(
    nodes: int, gpus: int, timeout_s: float, listed: Callable[[], list[dict[str, Any]]]
) -> bool:
    """Whether so many nodes, with so many GPUs each, came in time.

    Args:
        listed: the nodes as `ray.nodes` gives them.
    """
    end, next_line = time.monotonic() + timeout_s, 0.0
    each = f" with {gpus} GPUs each" if gpus else ""
    while True:
        found = sum(_fits(node, gpus) for node in listed())
        if found >= nodes:
            say(f"nodes    {found} of {nodes}{each} are in Ray's cluster")
            return True
        now = time.monotonic()
        if now >= end:
            say(
                f"error: {found} of {nodes} nodes{each} are in Ray's cluster after "
                f"{timeout_s:.0f} s: the cloud has none left, the quota is used up, or their setup "
                "failed; `ray status` and the autoscaler's log say which",
                problem=True,
            )
            return False
        if now >= next_line:
            say(f"nodes    waiting: {found} of {nodes}{each} are in Ray's cluster")
            next_line = now + LINE_EVERY_S
        time.sleep(min(EVERY_S, end - now))


def _fits(node: dict[str, Any], gpus: int) -> bool:
    """Whether a node is alive and can take work; a head without cores takes none."""
    resources = node.get("Resources", {})
    return bool(
        node.get("Alive")
        and resources.get("GPU", 0) >= gpus
        and (resources.get("GPU", 0) or resources.get("CPU", 0))
    )


if __name__ == "__main__":
    sys.exit(main())
