"""Asks every node of the cluster, before the first row, whether it can work for the job.

A node that lacks the package, cannot reach the output or has a torch without CUDA would show it
minutes later, in the middle of the run, by the row or not at all. Here it costs seconds, and all
that is found stands in one message.
"""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, requires
from itertools import islice
from pathlib import Path
from typing import Any

from cluster import quiet  # noqa: F401 - before Ray, which reads it when it is imported

import ray  # isort: skip
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # isort: skip

from cluster.connection import reason
from cluster.job import CannotRun, Job
from cluster.layout.placement import given_address
from cluster.preflight import node as node_program
from cluster.preflight.findings import (
    COMPARED,
    Answer,
    AskedNode,
    Here,
    grouped,
    message,
    problems_of,
    read_answer,
    warnings_of,
)
from pipeline.errors import RowError
from pipeline.locations import resolve_uri
from pipeline.storage import Folder, check_file, explain

CHECK_S = 60.0
"""What a node may take for a check; storage that cannot be reached may let one hang."""
GPUS_S = 300.0
"""What importing torch and trying all GPUs may take: from a cold network disk, minutes."""
START_S = 60.0
"""What Ray may take beside that to start a process on a node."""
PACKAGES = ("ray", *COMPARED)
SLACK_S = 10.0
"""A process on a node ends itself when its checks are late; one that cannot is ended after this."""
VIDEOS_TRIED = 3
FILES_AT_ONCE = 16
SILENT = (
    "Ray starts no process there, or the node is too busy. Look at `ray status` and at the logs "
    "on that node (/tmp/ray/session_latest/logs), or take it out of the cluster"
)

LEFT = "left the cluster while it was asked whether it can work: it gets no groups"

Missed = Callable[[AskedNode], str | None]
"""What is wrong with the file that a node has written, as this machine sees it."""


def preflight(job: Job) -> list[str]:
    """Check every node that may get actors of the job.

    Where the only node is one that the job itself started on this machine, what the driver has
    checked holds for it too, and no process is started.

    Returns:
        Warnings: what does not stop the job.

    Raises:
        CannotRun: a node cannot work for it; the text has all that was found, by node.
    """
    nodes = _nodes()
    on_gpus = job.cluster.device != "cpu" and any(node.gpus for node in nodes)
    if _started_here(nodes):
        only = nodes[0]
        if on_gpus and (problem := node_program.check_gpus(only.gpus, load=False)):
            raise CannotRun(message({only: [problem]}, 1))
        return []
    here = _here(job)
    with _output_file(job, nodes) as (files, missed):
        requests = _requests(job, nodes, files, on_gpus=on_gpus)
        answers = _ask(nodes, requests, list(here.installed["packages"]))
        there = set(_nodes())
        gone, nodes = [n for n in nodes if n not in there], [n for n in nodes if n in there]
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            seen = pool.map(lambda node: _and_seen_here(answers[node], node, missed), nodes)
            answers = dict(zip(nodes, seen, strict=True))
    problems = {n: problems_of(answers[n], here, requests[n]) for n in nodes}
    if stopped := {node: found for node, found in problems.items() if found}:
        raise CannotRun(message(stopped, len(nodes)))
    warnings = grouped({node: warnings_of(answers[node], here) for node in nodes})
    return [*warnings, *(f"node {node.host} ({node.address}) {LEFT}" for node in gone)]


def _nodes() -> list[AskedNode]:
    """The nodes that may get actors; a head without CPUs and GPUs gets none."""
    return [
        AskedNode(
            id=node["NodeID"],
            host=node["NodeManagerHostname"],
            address=node["NodeManagerAddress"],
            gpus=int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"] and (node["Resources"].get("CPU") or node["Resources"].get("GPU"))
    ]


def _started_here(nodes: Sequence[AskedNode]) -> bool:
    """Whether the only node is this machine, with this Python and this environment."""
    return not given_address() and [node.host for node in nodes] == [socket.gethostname()]


def _here(job: Job) -> Here:
    required = _required()
    names = dict.fromkeys([*PACKAGES, *required])
    return Here(
        installed=node_program.installed(names),
        requires=required,
        subjects={
            "output": f"output {job.editing.output}",
            "checkpoint": f"checkpoint {job.editing.checkpoint!r}",
            "video": "video",
            "decoding": "video decoding",
            "gpus": "GPUs",
        },
    )


def _required() -> dict[str, str]:
    """The packages that this one requires, with the versions that it supports.

    A checkout that is not installed says nothing of it.
    """
    from packaging.requirements import Requirement

    try:
        wanted = map(Requirement, requires("retake") or ())
    except PackageNotFoundError:
        return {}
    return {r.name: str(r.specifier) for r in wanted if r.marker is None or r.marker.evaluate()}


def _and_seen_here(answer: Answer, node: AskedNode, missed: Missed) -> Answer:
    """The answer, with what is wrong with the file that the node says it has written."""
    if answer.problems.get("output", "not checked") or not (problem := missed(node)):
        return answer
    return replace(answer, problems={**answer.problems, "output": problem})


@contextmanager
def _output_file(
    job: Job, nodes: Sequence[AskedNode]
) -> Iterator[tuple[Mapping[AskedNode, Any], Missed]]:
    """A new file in the output folder; it goes again, and so do those that the nodes write.

    Gives the arguments of each node's `check_output`, and a function that says what is wrong with
    the file that a node has written.
    """
    folder = Folder(job.editing.output)
    content = uuid.uuid4().hex
    name = f".retake-preflight-{content[:12]}"
    theirs = {node: f"{name}-{node.id[:12]}" for node in nodes}

    def missed(node: AskedNode) -> str | None:
        try:
            if folder.read(theirs[node]).decode(errors="replace") == content:
                return None
        except FileNotFoundError:
            pass
        except Exception as error:  # each storage has its own kinds of failure
            return f"{explain(error, folder.uri).text} (what the node wrote)"
        return "what the node writes there is not seen on this machine"

    def remove(file: str) -> None:
        with suppress(Exception):  # that a file stays is worth no failed job
            folder.remove(file)

    try:
        try:
            folder.write(name, content.encode())
        except Exception as error:
            why = explain(error, folder.uri, "written").text
            raise CannotRun(f"output {folder.uri}: {why}") from error
        arguments = {
            node: {"uri": folder.uri, "theirs": name, "ours": theirs[node], "content": content}
            for node in nodes
        }
        yield arguments, missed
    finally:
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            pool.map(remove, (name, *theirs.values()))


def _requests(
    job: Job, nodes: Sequence[AskedNode], files: Mapping[AskedNode, Any], *, on_gpus: bool
) -> dict[AskedNode, dict[str, Any]]:
    """The checks that each node is asked for, by name, with their arguments."""
    shared: dict[str, Any] = {"checkpoint": _checkpoint(job), "decoding": {}}
    if video := _a_video(job):
        shared["video"] = {"uri": video}
    requests = {node: {"output": files[node], **shared} for node in nodes}
    for node in nodes:
        if on_gpus and node.gpus:
            requests[node]["gpus"] = {"gpus": node.gpus}
    return requests


def _checkpoint(job: Job) -> dict[str, Any]:
    pin = job.checkpoint
    return {"uri": job.editing.checkpoint, "pin": asdict(pin) if pin else None}


def _a_video(job: Job) -> str | None:
    """One of the manifest's first videos, if this machine finds any of them."""
    rows = (row for table in job.files.tables(["video"]) for row in table["video"].to_pylist())
    for video in islice(rows, VIDEOS_TRIED):
        with suppress(RowError, TypeError, AttributeError):  # of its row, which the run reports
            uri = resolve_uri(video, job.base)
            check_file(uri)
            return uri
    return None


def _ask(
    nodes: Sequence[AskedNode],
    requests: Mapping[AskedNode, Mapping[str, Any]],
    packages: Sequence[str],
) -> dict[AskedNode, Answer]:
    """Have all nodes make their checks at once."""

    def run_there(program: str, request: str, timeout_s: float) -> tuple[str, str]:
        """Run a program where this process runs. It may have ended itself, or have to be ended.

        Ray sends a function that is defined in another as it is, not by its module's name: the
        node may lack the module. So all that it needs is imported inside.
        """
        import subprocess
        import sys

        command = [sys.executable, "-c", program]
        try:
            done = subprocess.run(
                command,
                check=False,
                input=request,
                capture_output=True,
                text=True,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as late:
            return (late.stdout or b"").decode(errors="replace"), f"no answer in {timeout_s:g} s"
        if done.returncode == 0:
            return done.stdout, ""
        lines = ["", *done.stderr.strip().splitlines()]
        ending = f"the check ended with exit status {done.returncode}: {lines[-1]}"
        return done.stdout, ending.removesuffix(": ")

    program = Path(node_program.__file__).read_text(encoding="utf-8")
    task = ray.remote(num_cpus=0, max_retries=0)(run_there)
    deadlines = {node: {name: _deadline_s(name) for name in requests[node]} for node in nodes}
    longest_s = max(
        (s for of_node in deadlines.values() for s in of_node.values()), default=CHECK_S
    )
    asked = {}
    for node in nodes:
        request = {
            "packages": packages,
            "checks": requests[node],
            "deadlines_s": deadlines[node],
        }
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        ref = task.options(scheduling_strategy=there).remote(
            program, json.dumps(request), longest_s + SLACK_S
        )
        asked[ref] = node
    until_s = longest_s + SLACK_S + START_S
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=until_s)
    for ref in late:
        ray.cancel(ref, force=True)
    answers = {asked[ref]: Answer(ending=f"no answer in {until_s:g} s: {SILENT}") for ref in late}
    return answers | {asked[ref]: _answer(ref) for ref in ready}


def _deadline_s(check: str) -> float:
    return GPUS_S if check == "gpus" else CHECK_S


def _answer(ref: Any) -> Answer:
    try:
        printed, ending = ray.get(ref)
    except Exception as error:  # Ray has many kinds: of environments, workers, nodes that left
        return Answer(ending=f"Ray cannot run a task there: {reason(error)}")
    return read_answer(printed, ending)
