"""Connects to Ray for the length of a run, or says why it cannot."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

from cluster import quiet  # before Ray, which reads its settings when it is imported
from cluster.driver.sudden_end import last_word
from cluster.job import CannotRun, Job
from cluster.layout.placement import Node, Placement, given_address, place, slots
from cluster.layout.work import Amount
from cluster.submission.token import (
    IN_ENVIRONMENT,
    MODE_VARIABLE,
    VARIABLE,
    find_token,
    missing,
    refused,
)

import ray  # isort: skip
import ray.data  # isort: skip
import psutil  # isort: skip - Ray brings it, in a folder of its own
from ray._private import utils  # isort: skip
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
NO_NODE = (
    "Ray has no node: the raylet of each has ended. The results so far are stored; look for what "
    "ended it (memory, `ray stop`), and run the same command again to go on"
)
INIT_DEATHS = 10
"""So many actors of a stage in a row may die while they start; by itself Ray Data allows none."""
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
    with ExitStack() as stack:
        if not ray.is_initialized():
            stack.enter_context(last_word())
            stack.enter_context(quiet.into_a_file())
            stack.callback(ray.shutdown)
            if address := given_address():
                _join(address)
            else:
                _start(slots(job))
        placement = placed(job, amount)
        if given_address() and placement.device == "cpu" and job.cluster.device == "auto":
            placement = replace(placement, notes=(*placement.notes, NO_GPUS))
        yield placement


def placed(job: Job, amount: Amount | None) -> Placement:
    """Room for the job. What is reserved now is waited for a moment: a job may just have ended.

    Raises:
        CannotRun: as `connected` does.
    """
    until = time.monotonic() + FREED_S
    while True:
        nodes = alive_nodes()
        held = any(node.free.get("GPU", 0.0) < node.has.get("GPU", 0.0) for node in nodes)
        late = time.monotonic() >= until
        try:
            placement = placed_on(job, nodes, amount)
            if late or not held or placement.device == "cpu":
                return placement
        except CannotRun:
            if late or all(node.free == node.has for node in nodes):
                raise
        time.sleep(0.2)


def placed_on(
    job: Job, nodes: Sequence[Node], amount: Amount | None, without: Collection[str] = ()
) -> Placement:
    """Room for the job on these nodes.

    Args:
        without: the ids of nodes that get no group.

    Raises:
        CannotRun: there is too little, or no node.
    """
    if not nodes:
        raise CannotRun(NO_NODE)
    there = [node for node in nodes if node.id not in without]
    return replace(place(job, there, amount), without=tuple(sorted(without)))


def alive_nodes() -> list[Node]:
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
    # What is lost with a process or node is dropped; the driver sees which rows are missing.
    context.max_errored_blocks = -1
    # An actor that dies while it starts is replaced; -1 is no limit. What cannot start at all is
    # found by the preflight, or said by its group.
    context.max_consecutive_actor_init_deaths = INIT_DEATHS


def reason(error: Exception) -> str:
    """An error of Ray's in one line: its texts hold tracebacks of other processes."""
    text, _, trace = str(error).partition("Traceback (most recent call last)")
    last = trace.strip().splitlines()[-1:]
    return f"{type(error).__name__}: {' '.join(' '.join([text, *last]).split())}".rstrip(".")


def _join(address: str) -> None:
    """Join the cluster at an address. Raises CannotRun where there is none."""
    os.environ.setdefault(HEAD_TRIES, "1")
    try:
        _reach(address)
        _init()
    except Exception as error:  # Ray has many kinds: of connections, versions, addresses
        if _asks_for_a_token(error):
            raise CannotRun(_no_token(address)) from error
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


def _asks_for_a_token(error: BaseException | None) -> bool:
    """Whether the head refused us: Ray says so in a cause alone."""
    while error is not None:
        if "AuthenticationError" in f"{type(error).__name__}: {error}":
            return True
        error = error.__cause__ or error.__context__
    return False


def _no_token(address: str) -> str:
    """What to say of a cluster that refused us."""
    cluster = f"the environment variable RAY_ADDRESS is {address!r}, and the cluster there"
    token = find_token()
    if token.value is None and not os.environ.get(MODE_VARIABLE):
        return missing(cluster, f"{MODE_VARIABLE}=token and {IN_ENVIRONMENT}")
    if os.environ.get(MODE_VARIABLE, "").lower() != "token":
        return (
            f"{cluster} asks for a token. Set {MODE_VARIABLE}=token: only then does Ray send one "
            f"to an address that is named. It looks for it in {IN_ENVIRONMENT}"
        )
    if token.value is None:
        return missing(cluster, IN_ENVIRONMENT)
    return refused(cluster, token, VARIABLE)


def _reach(address: str) -> None:
    """Try the port of a `host:port`; of other addresses Ray finds out soon enough itself."""
    host, _, port = address.rpartition(":")
    if host and "/" not in address and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()


def _start(cpus: int) -> None:
    """Start a cluster on this machine. Raises CannotRun where it does not come up."""
    others = {process.pid for process in _children()}
    for tries in range(1, START_TRIES + 1):
        try:
            # Without `local` Ray would join a cluster that `ray start` left on this machine, and
            # refuse to give it CPU slots.
            _init(address="local", num_cpus=max(os.cpu_count() or 1, cpus), include_dashboard=False)
            return
        except Exception as error:
            ray.shutdown()
            # Ray forgets what it had started by then, which would take the next try's time and
            # memory, and stay as long as this process does.
            for process in _children():
                with suppress(psutil.Error):
                    if process.pid not in others:
                        process.kill()
            if tries == START_TRIES:
                raise CannotRun(_no_start(error)) from error


def _children() -> list[psutil.Process]:
    """The processes below this one, whatever started them."""
    return psutil.Process().children(recursive=True)


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
    """`ray.init` without its messages, and without its handler of SIGTERM: the command has one."""
    its_own = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        with quiet.held_back():
            ray.init(
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.CRITICAL,
                **options,
            )
    finally:
        utils.set_sigterm_handler = its_own
        if threading.current_thread() is threading.main_thread():
            # Ray's native code has put a handler of its own before ours, which aborts the process.
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
