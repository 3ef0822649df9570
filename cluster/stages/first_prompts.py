"""Prompts before the graph starts: the first ones on a GPU, and memory for the later ones.

T5-XXL takes some seconds for a prompt on CPUs and some milliseconds on a GPU, where it has no room
beside the transformer of most jobs. So the first prompts are encoded before a transformer is
loaded, by a process that is gone by then; later ones by the prompts stage, beside work on videos.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster import quiet  # noqa: F401 - before Ray, which reads it when it is imported

import ray  # isort: skip

from cluster.connection import FREED_S, free_gpus, reason
from cluster.job import CannotRun, Job
from cluster.layout.placement import Placement
from cluster.progress import Event
from cluster.stages.blocks import VideoWork
from cluster.stages.group import Report
from cluster.stages.prompts import EncodePrompts, prompts_of, store_of
from pipeline.errors import UnsupportedCheckpoint
from pipeline.model.checkpoint import open_checkpoint
from pipeline.model.footprint import weight_bytes
from pipeline.model.memory import gigabytes
from pipeline.model.prompts import text_precision

FIRST_PROMPTS = 1000
"""At most so many are encoded first: about 15 to 30 s of a GPU with T5-XXL."""
FIRST_ROWS = 20_000
"""At most so many rows of the manifest are looked at for them: a second or two."""
PLACED_S = 60.0
"""A free GPU is given to the encoder in this time, or the prompts stage does the work."""
TICK_S = 0.2
MARGIN = 1.25
"""What a text encoder takes of memory while it loads and works, of the bytes of its weights."""
BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class First:
    """The first rows of a wave.

    Args:
        work: of the wave.
        all: whether no others follow it.
    """

    work: Sequence[VideoWork]
    all: bool


@dataclass(frozen=True)
class Missing:
    """The first prompts that storage does not hold.

    Args:
        prompts: in the manifest's order.
        all: whether no others can be missing.
        why: they could not be encoded on a GPU; empty where that was not tried, or done.
    """

    prompts: Sequence[str]
    all: bool
    why: str = ""


@dataclass(frozen=True)
class Prepared:
    """What the graph has to know.

    Args:
        memory: bytes that each text encoder on CPUs is to reserve.
        missing: some of the first prompts are still to be encoded.
        notes: sentences for the user.
    """

    memory: int = 0
    missing: bool = False
    notes: tuple[str, ...] = ()


def prepare(
    job: Job,
    placement: Placement,
    first: First,
    on_wait: Callable[[], None],
    report: Report | None = None,
) -> Prepared:
    """Encode the first prompts on a GPU, where videos take GPUs and prompts have none of their own.

    Args:
        on_wait: called about five times a second; has to end an encoder that is silent.
        report: hears that the encoder is there.

    Raises:
        CannotRun: no node has so much.
    """
    pool = placement.pools[0]
    if placement.on_gpus(pool):
        return Prepared()
    job = encoding(job, placement)
    missing = find_missing(job, first)
    if placement.device == "gpu":
        arguments = (pool.shape, "gpu", placement.threads)
        missing = encode_first(job, missing, arguments, on_wait, report)
    if missing.all and not missing.prompts:
        return Prepared()  # no encoder is going to load anything
    memory = encoder_memory(job)
    check_memory(memory, pool.groups, placement.memories, gpus=placement.device == "gpu")
    note = (
        f"the first prompts are encoded on CPUs, since a GPU could not: {missing.why}. "
        "cluster.prompts.gpus: 1 keeps one for prompts"
    )
    return Prepared(memory, bool(missing.prompts), (note,) if missing.why else ())


def encoding(job: Job, placement: Placement) -> Job:
    """The job as its text encoders see it, with the precision that T5 runs in."""
    precision = text_precision(job.editing.precision, gpu=placement.device == "gpu")
    return replace(job, editing=replace(job.editing, precision=precision))


def find_missing(job: Job, first: First) -> Missing:
    """The prompts of the first pending rows that storage does not hold."""
    wanted: dict[str, None] = {}
    for video in first.work[:FIRST_ROWS]:
        if len(wanted) >= FIRST_PROMPTS:
            return Missing(_not_held(job, list(wanted)[:FIRST_PROMPTS]), all=False)
        wanted |= dict.fromkeys(prompts_of(job, [video]))
    everything = first.all and len(first.work) <= FIRST_ROWS
    return Missing(_not_held(job, list(wanted)), all=everything)


def encode_first(
    job: Job,
    missing: Missing,
    arguments: Sequence[Any],
    on_wait: Callable[[], None],
    report: Report | None = None,
) -> Missing:
    """Encode prompts on a GPU, which is free again afterwards.

    A rank that hangs is ended by its owner, the encoder. That one is ended by who hears its report,
    where it is stopped itself. A failure leaves the work to the prompts stage: where the checkpoint
    is the reason it fails too, and says so.

    Args:
        arguments: those of `EncodePrompts` after the job and the report.
        on_wait, report: as in `prepare`.

    Returns:
        What is missing afterwards.
    """
    if not missing.prompts:
        return missing
    before = free_gpus()
    encode = ray.remote(num_gpus=1, num_cpus=0)(EncodePrompts)
    encoder = encode.remote(job, Unheard(report), *arguments)
    try:
        if not _done(encoder.__ray_ready__.remote(), on_wait, PLACED_S):
            return replace(missing, why=f"Ray gave none within {PLACED_S:g} s")
        failed = _done(encoder.encode.remote(missing.prompts), on_wait)
        _done(encoder.close.remote(), on_wait)
    except ray.exceptions.RayError as error:
        return replace(missing, why=reason(error))
    finally:
        ray.kill(encoder)
        _wait_for(before)
    left = [prompt for prompt in missing.prompts if prompt in failed]
    return replace(missing, prompts=left, why=str(failed[left[0]].error) if left else "")


def _wait_for(gpus: float) -> None:
    """Until so many GPUs are free again: `layout.packing` holds where all that it counted are."""
    until = time.monotonic() + FREED_S
    while free_gpus() < gpus and time.monotonic() < until:
        time.sleep(TICK_S / 4)


class Unheard:
    """A report that goes nowhere: the prompts stage counts the prompts again, and fails again.

    Args:
        of: hears that the process is there, and nothing else.
    """

    def __init__(self, of: Report | None = None) -> None:
        self.of, self.gives_up = of, False

    def attend(self, stage: str, doing: Callable[[], str] = str) -> str | None:
        return self.of.attend(stage, doing) if self.of else None

    def happened(self, event: Event, times: int = 1) -> None: ...

    def broken(self, reason: str) -> None:
        self.gives_up = True

    def repaired(self) -> None: ...

    def may_start(self) -> bool:
        return not self.gives_up


def encoder_memory(job: Job) -> int:
    """Bytes of its node's memory that a text encoder on CPUs takes; 0 where it cannot be known.

    Args:
        job: as `encoding` gives it.
    """
    try:
        info = open_checkpoint(job.checkpoint or job.editing.checkpoint, parts=())
    except UnsupportedCheckpoint:  # the ranks say so
        return 0
    return int(MARGIN * weight_bytes(info, "text_encoder", BYTES[job.editing.precision]))


def check_memory(memory: int, groups: int, given: Sequence[float], *, gpus: bool) -> None:
    """Refuse encoders on CPUs that the nodes have no memory free for: Ray would wait for it.

    Args:
        memory: bytes that each of the encoders takes.
        groups: how many there are.
        given: bytes of each node that no actor reserves, where that is known.
        gpus: whether one could have a GPU instead.

    Raises:
        CannotRun: with the way out.
    """
    if not memory or not given or sum(have // memory for have in given) >= groups:
        return
    who = "a text encoder on CPUs takes" if groups == 1 else f"{groups} text encoders on CPUs take"
    each = "" if groups == 1 else " each"
    together = f", all {len(given)} together have {gigabytes(sum(given))}" * (len(given) > 1)
    ways = ["set cluster.prompts.gpus to 1, which gives it a GPU of its own"] if gpus else []
    ways += ["have fewer cluster.prompts.groups"] if groups > 1 else []
    way_out = ", ".join([*ways, f"{'or ' * bool(ways)}add a node with more memory"])
    raise CannotRun(
        f"{who} {gigabytes(memory)} of memory of one node{each}; the largest node has "
        f"{gigabytes(max(given))} free for Ray{together}. {way_out[0].upper()}{way_out[1:]}"
    )


def _not_held(job: Job, prompts: Sequence[str]) -> list[str]:
    try:
        return store_of(job).missing(prompts)
    except Exception:  # each storage has its own kinds of failure; the ranks report them
        return list(prompts)


def _done(what: Any, on_wait: Callable[[], None], most_s: float = float("inf")) -> Any:
    """What a call of the encoder returns; None where it does not in this time."""
    waited = 0.0
    while not ray.wait([what], timeout=TICK_S)[0]:
        on_wait()
        waited += TICK_S
        if waited >= most_s:
            return None
    return ray.get(what)
