"""Rank processes for tests and benchmarks: groups of real processes that exchange over gloo.

Importing torch, diffusers and xfuser takes longer than the work of a small model. So one process
imports them and forks the ranks; they form one group after another, each as torchrun starts it.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkProcess

import torch

from pipeline.degrees import Degrees
from pipeline.transformer import TokenGroup

Groups = Sequence[tuple[Sequence[int], Degrees]]
"""(which of the processes form a group, its degrees). Groups without a common process run at the
same time."""
Work = Callable[[TokenGroup, Degrees], None]


def run_groups(groups: Groups, ports: Sequence[str], work: Work, alone: Callable[[], None]) -> None:
    """Let every rank of every group do its work; ends this process with 1 when one of them fails.

    Args:
        ports: one for each group.
        alone: done in a process of its own that has not imported xfuser.
    """
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=alone)]
    processes[0].start()
    from pipeline.parallel import import_xfuser

    import_xfuser(torch.device("cpu"))
    count = 1 + max(max(members) for members, _ in groups)
    processes += [fork.Process(target=_join, args=(i, groups, ports, work)) for i in range(count)]
    for process in processes[1:]:
        process.start()
    _wait(processes)


def free_ports(count: int) -> list[str]:
    # All are held until all are known: a port that was let go might be given again.
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [str(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _join(process: int, groups: Groups, ports: Sequence[str], work: Work) -> None:
    from pipeline.parallel import start

    # As with a CUDA build of torch on a machine without a GPU.
    torch.version.cuda = "12.8"
    for (members, degrees), port in zip(groups, ports, strict=True):
        if process not in members:
            continue
        rank = str(members.index(process))
        os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=str(len(members)))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        group = start(degrees.ulysses, degrees.ring, degrees.cfg)
        work(group, degrees)
        group.stop()


def _wait(processes: Sequence[ForkProcess]) -> None:
    running = list(processes)
    while running:
        multiprocessing.connection.wait([process.sentinel for process in running])
        running = [process for process in running if process.is_alive()]
        if any(process.exitcode for process in processes):
            # The others would wait for the dead one.
            for process in running:
                process.kill()
            sys.exit(1)
