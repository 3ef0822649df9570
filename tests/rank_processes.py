"""Rank processes for tests and benchmarks: groups of real processes that exchange over gloo.

Importing torch, diffusers and xfuser takes longer than the work of a small model. So one process
imports them and forks the ranks; they form one group after another, each as torchrun starts it.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch

from pipeline.model.group import TokenGroup
from pipeline.model.parallel.degrees import Degrees

Groups = Sequence[tuple[Sequence[int], Degrees]]
"""(which of the processes form a group, its degrees). Groups without a common process run at the
same time."""
Work = Callable[[TokenGroup, Degrees], None]


def run_groups(groups: Groups, folder: Path, work: Work, alone: Callable[[], None]) -> None:
    """Let every rank of every group do its work; ends this process with 1 when one of them fails.

    Args:
        folder: an empty one, where the ranks of each group find each other.
        alone: done in a process of its own that has not imported xfuser.
    """
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=alone)]
    processes[0].start()
    from pipeline.model.parallel.group import import_xfuser

    import_xfuser(torch.device("cpu"))
    count = 1 + max(max(members) for members, _ in groups)
    processes += [fork.Process(target=_join, args=(i, groups, folder, work)) for i in range(count)]
    for process in processes[1:]:
        process.start()
    _wait(processes)


def _join(process: int, groups: Groups, folder: Path, work: Work) -> None:
    from pipeline.model.parallel.group import RENDEZVOUS, start

    # As with a CUDA build of torch on a machine without a GPU.
    torch.version.cuda = "12.8"
    for number, (members, degrees) in enumerate(groups):
        if process not in members:
            continue
        rank = str(members.index(process))
        os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=str(len(members)))
        os.environ[RENDEZVOUS] = str(folder / f"rendezvous-{number}")
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
