"""What a run loses and waits for, and how it is ended, for docs/messages.md."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import ray

from cluster import connection, waiting
from cluster.connection import connected, placed
from cluster.dataflow import _Run
from cluster.driver import placing
from cluster.driver.control import Owner, State
from cluster.driver.leaving import Leaving
from cluster.driver.lost import FUTILE_WAVES, LOGGER, LostBlocks, all_lost, given_up, lost_blocks
from cluster.driver.wave import Wave
from cluster.layout.placement import Node, place
from cluster.layout.work import Amount
from cluster.metrics.run import RunMetrics
from cluster.output.attempts import Attempts
from cluster.ranks.messages import EncodePrompts
from cluster.stages.blocks import WORK, EditWork, VideoWork
from pipeline.storage import Folder
from tests.docs.mistakes.on_a_cluster import in_notes, job, refused
from tests.docs.mistakes.on_a_node import a_stage, other_folder
from tests.docs.mistakes.provoke import Mistakes

FEW = Amount(3, 12)
CPUS = {"CPU": 16.0}
GPUS = {**CPUS, "GPU": 4.0}


def nodes(*resources: dict[str, float]) -> list[Node]:
    return [Node(f"10.0.0.{n}", have, have, f"node-{n}") for n, have in enumerate(resources, 1)]


def alive(*resources: dict[str, float]) -> Any:
    """The cluster has these nodes."""
    return patch.object(connection, "alive_nodes", return_value=nodes(*resources))


def a_run(cluster: str = "{}", lost: LostBlocks | None = None, **values: Any) -> _Run:
    """A run on its way, which has no rows."""
    nothing: Any = SimpleNamespace(
        check=lambda: None, note=None, add=lambda table: None, unstored=0
    )
    here = job(cluster)
    place_of = placing.Placing(here, FEW, ())
    lost = lost or LostBlocks()
    one = _Run(
        here, FEW, nothing, lambda counts: None, nothing, lost, [], place_of, RunMetrics("r", 0)
    )
    for name, value in values.items():
        setattr(one, name, value)
    return one


# Nodes


def without_nodes() -> str:
    with alive():
        return refused(lambda: placed(job(), FEW))


def waits_for_nodes() -> str:
    """What a run says where no node is left that has room for it."""
    shown: list[str] = []

    def on_wait(why: str) -> bool:
        shown.append(why)
        return False

    with (
        patch.object(placing, "alive_nodes", return_value=nodes(CPUS)),
        patch.dict(os.environ, RAY_ADDRESS="10.0.0.1:6379"),
    ):
        placing.Placing(job("{device: gpu}"), FEW, nodes(CPUS)).again((), on_wait)
    return in_notes(shown)


def joins_without_gpus() -> str:
    """What a run says that has joined a cluster without GPUs."""
    with (
        alive(CPUS),
        patch.dict(os.environ, RAY_ADDRESS="10.0.0.1:6379"),
        patch.object(connection, "_join"),
        connected(job()) as placement,
    ):
        return in_notes(placement.notes)


def finds_no_place() -> str:
    """What a run says of actors that have waited for long."""
    late = waiting.Waiting(lambda: {"a": "MapWorker(MapBatches(EditVideos))"}, asked=0.0)
    late.note(waiting.EVERY_S)
    return in_notes(late.note(waiting.EVERY_S + waiting.LONG_S))


# Rows that went down with their process


def died() -> None:
    """Ray Data drops a block whose actor died, and says so in its log."""
    try:
        raise ray.exceptions.ActorDiedError
    except ray.exceptions.ActorDiedError:
        logging.getLogger(LOGGER).error("An exception was raised", exc_info=True)


def work(videos: int) -> pa.Table:
    edits = (EditWork(edit_id="a", prompt="a zebra"),)
    rows = [VideoWork("horse.mp4", f"horse-{n}", edits=edits) for n in range(videos)]
    return pa.Table.from_pylist(list(map(asdict, rows)), schema=WORK)


def is_lost(say: Callable[[LostBlocks], str]) -> str:
    """What is said of work that was lost."""
    with lost_blocks() as lost:
        died()
        return say(lost)


def made_again(lost: LostBlocks) -> str:
    one = a_run(lost=lost, lost_before=0, feed=SimpleNamespace(put=lambda table: None))
    one._keep(Wave(work(3)))
    return in_notes(one.counts.notes)


def lost_five_times(lost: LostBlocks) -> str:
    return str(given_up(work(1), "r", lost, 5)["error"][0])


def in_vain(lost: LostBlocks) -> str:
    """What ends a run whose waves bring nothing."""
    return f"error: {all_lost(FUTILE_WAVES, '', lost.why)}"


def takes_its_owner_along() -> str:
    """What the row says of a request that killed the owner of its group on every try."""
    request = EncodePrompts(["a zebra"])
    stage = a_stage(Attempts(Folder("memory://messages"), "r1"))
    for _ in range(stage.job.cluster.retries + 2):  # the first one went beside others
        stage.attempts.of(stage._digest(request)).begin()
    said = str(stage.ask(request)[0].error)
    stage.attempts.of(stage._digest(request)).answered()
    return said


def cannot_start() -> str:
    """What ends a run of which no group can start."""
    reason = f"UnsupportedCheckpoint: {other_folder(shutil.rmtree)}"
    one = a_run()
    placement = place(one.job, nodes(CPUS), FEW)
    groups = placement.pools[1].groups
    owners = {
        str(n): Owner(placement.pools[1].stage, "node-1", n, 0.0, reason) for n in range(groups)
    }
    growth: Any = SimpleNamespace(more=lambda now, amount: 0)
    leave = Leaving(Wave(work(1)), placement, growth, one.placing, FEW, heard=0.0)
    return refused(lambda: leave.is_time(State(owners=owners), 0.0))


# Ends

ENDS_AT_ONCE = """
import os
from cluster.driver.sudden_end import last_word
with last_word():
    os._exit(1)
"""
IS_STOPPED = """
import signal, sys, threading, time
from jobs.stopping import AGAIN_S, Stopped, drains, stops_by_signal
def signals():
    for pause in [0.0, AGAIN_S + 0.1][:int(sys.argv[1])]:
        time.sleep(pause)
        signal.raise_signal(signal.SIGINT)
with stops_by_signal(), drains(20.0) as region:
    region.begin()
    threading.Thread(target=signals).start()
    region.stop.wait(60)
    time.sleep(60 if sys.argv[1] == "2" else 0)
"""
WHILE_IT_CHECKS = """
import signal, sys
from jobs.cli import app
import jobs.report
jobs.report.write_report = lambda *_: signal.raise_signal(signal.SIGINT)
app(["report", "made"])
"""


def ends(program: str, *arguments: str) -> str:
    """What a program complains of, without the traceback that its own end makes."""
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [ROOT, *sys.path]))},
    )
    return run.stderr.partition("Traceback")[0]


ROOT = str(Path(__file__).parents[3])

IN_A_RUN: Mistakes = {
    "a request that takes the owner of its group along on every try": takes_its_owner_along,
    "a row that is lost with its process five times": lambda: is_lost(lost_five_times),
    "three rows that are lost with their processes": lambda: is_lost(made_again),
    "all work is lost three times in a row": lambda: is_lost(in_vain),
    "no group can start": cannot_start,
    "all nodes of the cluster are gone": without_nodes,
    "the nodes with GPUs leave, `device: gpu`": waits_for_nodes,
    "a cluster without GPUs, no section `cluster`": joins_without_gpus,
    "a process for which Ray finds no place": finds_no_place,
}

ENDING: Mistakes = {
    "Ctrl-C in a run": lambda: ends(IS_STOPPED, "1"),
    "Ctrl-C again": lambda: ends(IS_STOPPED, "2"),
    "Ctrl-C in a command that reads": lambda: ends(WHILE_IT_CHECKS),
    "the process of a run ends all at once": lambda: ends(ENDS_AT_ONCE),
}
