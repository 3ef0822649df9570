"""A Ray cluster of several nodes on this machine, in a process of its own.

    python -m tests.faults.scene.nodes NODES CPUS     (started by `ray_nodes`)

It prints the address and each node's raylet, and takes commands from its standard input: `add`
starts a node, `remove N` takes one away as a cloud does. Its end, however it comes about, ends all
nodes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Nodes:
    """A running cluster.

    Attributes:
        raylets: the process ids of the worker nodes' raylets, in the order of their start; the
            head's is not among them.
    """

    process: subprocess.Popen[str]
    address: str
    raylets: list[int] = field(default_factory=list)

    def add(self) -> int:
        """Start one more node; returns its raylet's process id."""
        return int(self._ask("add")["raylet"])

    def remove(self, raylet: int) -> None:
        """End a node in order."""
        self._ask(f"remove {raylet}")
        self.raylets.remove(raylet)

    def _ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "raylet" in answer:
            self.raylets.append(answer["raylet"])
        return answer


@contextmanager
def ray_nodes(workers: int, cpus: int, environment: dict[str, str]) -> Iterator[Nodes]:
    """A head without CPUs, as clusters have it, and worker nodes.

    Args:
        cpus: of each worker node.
        environment: more environment variables for all processes of the cluster.
    """
    command = [sys.executable, "-m", "tests.faults.scene.nodes", str(workers), str(cpus)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdin
    assert process.stdout
    try:
        started = json.loads(process.stdout.readline())
        yield Nodes(process, started["address"], started["raylets"])
    finally:
        process.stdin.close()  # its sign to end
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def main(workers: int, cpus: int) -> None:
    from cluster import quiet  # noqa: F401
    from ray.cluster_utils import Cluster  # isort: skip

    cluster = Cluster()
    # Ray looks at nodes every second here: a stopped one is gone after some seconds, not half a
    # minute. Shared memory is small, since several nodes share this machine's.
    memory = {"object_store_memory": 100 << 20}
    options = {"num_cpus": cpus, **memory}
    system = {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 1000,
        "health_check_timeout_ms": 2000,
        "health_check_failure_threshold": 5,
    }
    try:
        cluster.add_node(num_cpus=0, **memory, include_dashboard=False, _system_config=system)
        nodes = {
            _raylet(node): node for node in (cluster.add_node(**options) for _ in range(workers))
        }
        print(json.dumps({"address": cluster.address, "raylets": [*nodes]}), flush=True)
        for line in sys.stdin:
            command, *of = line.split()
            if command == "add":
                node = cluster.add_node(**options)
                nodes[_raylet(node)] = node
                print(json.dumps({"raylet": _raylet(node)}), flush=True)
            else:
                cluster.remove_node(nodes.pop(int(of[0])), allow_graceful=True)
                print("{}", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
