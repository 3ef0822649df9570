"""Connects to Ray for the length of a run, or says why it cannot."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from cluster import quiet  # before Ray, which reads its settings when it is imported
from cluster.job import CannotRun, Job
from cluster.layout.placement import Node, Placement, given_address, place, slots
from cluster.layout.work import Amount

import ray  # isort: skip
import ray.data  # isort: skip
from ray._private.state import available_resources_per_node  # isort: skip


REACH_S = 10.0
"""A cluster's head that takes no connection in this time is not there."""
HEAD_TRIES = "RAY_gcs_server_port_wait_time_s"
"""How often Ray asks a head for its cluster, 40 s each time. By itself it asks for a quarter of an
hour, and says nothing."""
FREED_S = 3.0
"""What a job that ended reserves is free again after this time at the latest."""
NO_GPUS = (
    "no node of the cluster has a GPU, so the job runs on CPUs. Nodes that an autoscaler would add "
    "are not waited for: add them first, and set cluster.device to gpu to be sure of them"
)
START_TRIES = 2
"""A busy machine may be too slow for Ray, which gives its own start 30 s."""


@contextmanager
def connected(job: Job, amount: Amount | None = None) -> Iterator[Placement]:
    """Ray and room for the job: the cluster that RAY_ADDRESS names, or one that is started here.

    A local cluster is given as many CPU slots as the job's actors reserve: they are processes that
    take turns on however many cores there are, and Ray would wait for ever for slots it lacks.
    A Ray that the caller had connected before is taken as it is, and left so.

    Args:
        amount: what the run is going to do, where that is known.

    Raises:
        CannotRun: the cluster cannot be reached, or does not have free what the job asks for.
    """
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    ours = not ray.is_initialized()
    try:
        if ours and (address := given_address()):
            _join(address)
        elif ours:
            _start(slots(job))
        placement = _placed(job, amount)
        if given_address() and placement.device == "cpu" and job.cluster.device == "auto":
            placement = replace(placement, notes=(*placement.notes, NO_GPUS))
        yield placement
    finally:
        if ours:
            ray.shutdown()


def _placed(job: Job, amount: Amount | None) -> Placement:
    """Room for the job. What is reserved now is waited for a moment: a job may just have ended."""
    until = time.monotonic() + FREED_S
    while True:
        nodes = _nodes()
        held = any(node.free.get("GPU", 0.0) < node.has.get("GPU", 0.0) for node in nodes)
        late = time.monotonic() >= until
        try:
            placement = place(job, nodes, amount)
            if late or not held or placement.device == "cpu":
                return placement
        except CannotRun:
            if late or all(node.free == node.has for node in nodes):
                raise
        time.sleep(0.2)


def _nodes() -> list[Node]:
    """The nodes that are alive."""
    free = available_resources_per_node()
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [
        Node(
            str(node["NodeManagerAddress"]),
            node["Resources"],
            free.get(node["NodeID"], node["Resources"]),
            node["NodeID"],
        )
        for node in alive
    ]


def free_gpus() -> float:
    """GPUs of the cluster that no actor reserves, as Ray's head knows it now."""
    return float(sum(free.get("GPU", 0.0) for free in available_resources_per_node().values()))


def configure(job: Job) -> None:
    """Ray Data's settings for few, long, expensive tasks."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ray sees blocks, and a block may take hours: the owners of rank groups watch for progress. -1
    # is no limit.
    context.execution_no_progress_timeout_s = -1


def reason(error: Exception) -> str:
    """An error of Ray's in one line: its texts hold tracebacks of other processes."""
    text, _, trace = str(error).partition("Traceback (most recent call last)")
    last = trace.strip().splitlines()[-1:]
    return f"{type(error).__name__}: {' '.join(' '.join([text, *last]).split())}"


def _join(address: str) -> None:
    """Join the cluster at an address. Raises CannotRun where there is none."""
    os.environ.setdefault(HEAD_TRIES, "1")
    try:
        _reach(address)
        _init()
    except Exception as error:  # Ray has many kinds: of connections, versions, addresses
        other = "Version mismatch" in str(error)
        way_out = (
            "Install the cluster's versions of Ray and Python here"
            if other
            else "Give the address of a running cluster's head"
        )
        raise CannotRun(
            f"the environment variable RAY_ADDRESS is {address!r}, and Ray could not connect to "
            f"it: {reason(error)}. {way_out}, or unset RAY_ADDRESS to run on this machine"
        ) from error


def _reach(address: str) -> None:
    """Try the port of a `host:port`; of other addresses Ray finds out soon enough itself."""
    host, _, port = address.rpartition(":")
    if host and "/" not in address and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()


def _start(cpus: int) -> None:
    """Start a cluster on this machine. Raises CannotRun where it does not come up."""
    for tries in range(1, START_TRIES + 1):
        try:
            # Without `local` Ray would join a cluster that `ray start` left on this machine, and
            # refuse to give it CPU slots.
            _init(address="local", num_cpus=max(os.cpu_count() or 1, cpus), include_dashboard=False)
            return
        except Exception as error:
            ray.shutdown()
            if tries == START_TRIES:
                raise CannotRun(_no_start(error)) from error


def _no_start(error: Exception) -> str:
    shm = "/dev/shm"
    free = f", {shutil.disk_usage(shm).free / 1e9:.1f} GB free" if os.path.isdir(shm) else ""
    return (
        f"Ray did not start on this machine, in {START_TRIES} tries: {reason(error)}. It needs a "
        f"few GB of memory and of shared memory ({shm}{free}), free ports, and a short path that "
        "it can write to (/tmp/ray, or RAY_TMPDIR). `ray stop` ends one that was left running; "
        "try again when the machine is less busy, or name a running cluster in RAY_ADDRESS"
    )


def _init(**options: Any) -> None:
    """`ray.init` without its messages. It sets a handler for SIGTERM, which is put back."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with quiet.held_back():
            ray.init(
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.CRITICAL,
                **options,
            )
    except SystemExit:  # from Ray's handler
        signal.signal(signal.SIGTERM, handler)
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)
