"""Mistakes with nodes, GPUs and groups, for docs/messages.md: what was done, and how to do it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from cluster.job import CannotRun, Job
from cluster.layout.placement import Node, place
from cluster.layout.work import Amount
from cluster.preflight import driver, node
from cluster.preflight.findings import (
    Answer,
    AskedNode,
    Here,
    grouped,
    message,
    problems_of,
    warnings_of,
)
from cluster.stages import first_prompts
from cluster.stages.first_prompts import Missing, check_memory
from jobs.spec import load_job
from tests.docs.mistakes.provoke import JOB, Mistakes, validate

# Placement


def on_this_machine(cluster: str, gpus: int) -> str:
    """What `retake validate` says of a section `cluster` on a machine with so many GPUs."""
    with patch("cluster.layout.placement.visible_gpus", return_value=gpus):
        return validate(f"cluster: {cluster}\n")


def placed(cluster: str, *gpus: int, held: int = 0, videos: int = 10_000) -> str:
    """What a run says of a section `cluster` on nodes with so many GPUs each.

    Args:
        held: GPUs of the first node that another job has.
        videos: that are pending.
    """
    nodes = []
    for number, has in enumerate(gpus, 1):
        free = has - held * (number == 1)
        resources = {"CPU": 16.0, "GPU": float(has)}
        nodes.append(Node(f"10.0.0.{number}", resources, {**resources, "GPU": float(free)}))
    try:
        notes = place(job(cluster), nodes, Amount(videos, 4 * videos)).notes
    except CannotRun as error:
        return f"error: {error}"
    return in_notes(notes)


def in_notes(sentences: Iterable[str]) -> str:
    return "\n".join(f"note: {one}" for one in sentences)


def job(cluster: str = "{}") -> Job:
    Path("job.yaml").write_text(f"{JOB}cluster: {cluster}\n")
    spec: Any = load_job("job.yaml")
    files: Any = ()
    return Job("m.parquet", files, "", spec.editing(), spec.cluster, "f", "r")


def refused(call: Callable[[], Any]) -> str:
    """The error that ends a run for what a call refuses."""
    try:
        call()
    except CannotRun as error:
        return f"error: {error}"
    return "nothing was refused"


def without_a_gpu_for_t5() -> str:
    """What a run says where Ray gives the first prompts no GPU in time."""
    missing = Missing(["a zebra"], all=True)
    late = replace(missing, why=f"Ray gave none within {first_prompts.PLACED_S:g} s")
    with (
        patch.object(first_prompts, "find_missing", return_value=missing),
        patch.object(first_prompts, "encode_first", return_value=late),
        patch.object(first_prompts, "encoder_memory", return_value=0),
    ):
        resources = {"CPU": 16.0, "GPU": 1.0}
        placement = place(job(), [Node("10.0.0.1", resources, resources)])
        first: Any = None
        return in_notes(first_prompts.prepare(job(), placement, first, lambda: None).notes)


PLACEMENT: Mistakes = {
    "one machine with 4 GPUs, `reconstruction: {groups: 8}`": lambda: on_this_machine(
        "{reconstruction: {groups: 8}}", 4
    ),
    "one machine without GPUs, `device: gpu`": lambda: on_this_machine("{device: gpu}", 0),
    "two nodes with 4 GPUs each, `reconstruction: {gpus: 8}`": lambda: placed(
        "{reconstruction: {gpus: 8}}", 4, 4
    ),
    "8 GPUs of which another job holds 4, `reconstruction: {groups: 8}`": lambda: placed(
        "{reconstruction: {groups: 8}}", 8, held=4
    ),
    "8 GPUs of which another job holds 4, no section `cluster`": lambda: placed("{}", 8, held=4),
    "nodes with 8 and 7 GPUs, `reconstruction: {gpus: 3}`": lambda: placed(
        "{reconstruction: {gpus: 3}}", 8, 7
    ),
    "8 GPUs, `reconstruction: {groups: 5}`": lambda: placed("{reconstruction: {groups: 5}}", 8),
    "8 GPUs and 3 videos": lambda: placed("{layout: shared}", 8, videos=3),
    "one GPU, a group for each stage": lambda: placed(
        "{inversion: {groups: 1}, reconstruction: {groups: 1}}", 1
    ),
    "no GPU is free for the first prompts": without_a_gpu_for_t5,
    "a node with 8 GB of memory, and T5 on its CPUs": lambda: refused(
        lambda: check_memory(int(11.9e9), 1, [8e9], gpus=True)
    ),
}


# Preflight

PACKAGES = {"ray": "2.60.0", "torch": "2.13.0", "av": "18.1.0", "pyarrow": "21.0.0"}
MINE = {"version": "0.2.0", "code": "c0de", "place": "/srv/retake", "packages": PACKAGES}
NODE = AskedNode("1" * 56, "worker-1", "10.0.0.1", 8)


def asked(answer: Answer) -> str:
    """What a run says where one of two nodes answers so."""
    own = job()
    with patch.object(node, "installed", return_value=MINE):
        here = driver._here(own)
    here = Here(MINE, {"torch": ">=2.6", "av": ">=18", "ray": ">=2.55"}, here.subjects)
    if found := problems_of(answer, here, here.subjects):
        return f"error: {message({NODE: found}, 2)}"
    return in_notes(grouped({NODE: warnings_of(answer, here)}))


def there(packages: dict[str, str | None] | None = None, **values: Any) -> Answer:
    """The answer of a node that differs in what is given."""
    return Answer(MINE | values | {"packages": PACKAGES | (packages or {})})


def checked(check: str, problem: str | None) -> str:
    """What a run says where a check of a node finds a problem."""
    return asked(Answer(MINE, {check: problem}))


def not_shared() -> str:
    uri = str(Path("out").absolute())
    return str(node.check_output(uri, ".none", ".ours", "x"))


def without_decoding() -> str | None:
    with patch("av.open", side_effect=ValueError("no codec libx264")):
        return node.check_decoding()


def with_torch(version: str, cuda: str | None) -> str | None:
    """What the check of GPUs says of a build of torch, on a machine without a driver."""
    folder = Path("torch_of_a_node")
    folder.mkdir(exist_ok=True)
    lines = [f"__version__ = '{version}'", f"cuda = {cuda!r}", ""]
    (folder / "version.py").write_text("\n".join(lines))
    spec = SimpleNamespace(origin=str(folder / "__init__.py"))
    with patch.object(node.importlib.util, "find_spec", return_value=spec):
        return node.check_gpus(8, load=False)


class Driver:
    """A GPU driver for CUDA up to 11.4."""

    def cuDriverGetVersion(self, number: Any) -> int:
        number._obj.value = 11040
        return 0


def old_driver() -> str | None:
    with patch.object(node.ctypes, "CDLL", return_value=Driver()):
        return with_torch("2.9.0+cu128", "12.8")


def no_driver() -> str | None:
    with patch.object(node.ctypes, "CDLL", side_effect=OSError):
        return with_torch("2.9.0+cu128", "12.8")


def with_gpus(gpus: int, warning: str = "") -> str | None:
    """What the check of GPUs says where torch sees so many of 8, after a warning."""

    def available() -> bool:
        if warning:
            warnings.warn(warning, stacklevel=1)
        return gpus > 0

    cuda = SimpleNamespace(is_available=available, device_count=lambda: gpus)
    with patch.dict(sys.modules, torch=SimpleNamespace(cuda=cuda)):
        return node._torch_problem("torch 2.9.0+cu128", 8)


def no_such_video() -> str | None:
    return node.check_video(str(Path("none.mp4").absolute()))


REFUSED = "CUDA initialization: Unexpected error from cudaGetDeviceCount()"
NO_PACKAGE = "ModuleNotFoundError: No module named 'pipeline'"
PREFLIGHT: Mistakes = {
    "without Retake": lambda: asked(
        there(version=None, code="", place="/usr/bin/python3", error=NO_PACKAGE)
    ),
    "another version of Retake": lambda: asked(there(version="0.1.0", code="other")),
    "other code of the same version": lambda: asked(there(code="other", place="/opt/retake")),
    "without PyAV": lambda: asked(there({"av": None})),
    "an old torch": lambda: asked(there({"torch": "2.4.1+cu121"})),
    "another Ray": lambda: asked(there({"ray": "2.59.0"})),
    "another torch that is supported": lambda: asked(there({"torch": "2.9.1+cu128"})),
    "an output that is not shared": lambda: checked("output", not_shared()),
    "a video that only the driver finds": lambda: checked("video", no_such_video()),
    "torch without CUDA": lambda: checked("gpus", with_torch("2.9.0+cpu", None)),
    "without a GPU driver": lambda: checked("gpus", no_driver()),
    "an old GPU driver": lambda: checked("gpus", old_driver()),
    "a GPU driver that CUDA refuses": lambda: checked("gpus", with_gpus(0, REFUSED)),
    "GPUs that torch does not see": lambda: checked("gpus", with_gpus(2)),
    "no decoding": lambda: checked("decoding", without_decoding()),
    "a node that does not answer": lambda: asked(
        Answer(ending=f"no answer in 130 s: {driver.SILENT}")
    ),
    "a check that crashes": lambda: asked(Answer(MINE, {}, "the check ended with exit status -11")),
    "a storage that hangs": lambda: checked(
        "output", f"its check gave no answer in 60 s. {node.LATE['output']}"
    ),
}
