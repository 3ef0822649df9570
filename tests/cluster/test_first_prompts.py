"""Prompts before the graph starts: which ones, on which device, and with how much memory."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from cluster import dataflow
from cluster.connection import free_gpus
from cluster.driver import nodes, placing
from cluster.driver.control import Control as DriverControl
from cluster.job import CannotRun, Job
from cluster.layout.placement import Node, Placement, place
from cluster.settings import PromptSettings
from cluster.stages import first_prompts, group
from cluster.stages.blocks import work_of
from cluster.stages.first_prompts import (
    First,
    Missing,
    Prepared,
    check_memory,
    encoder_memory,
    encoding,
)
from cluster.stages.prompts import EncodePrompts, store_of
from pipeline.model.checkpoint import load_text_encoder, open_checkpoint
from pipeline.settings import EditingSettings
from tests.cluster.ranks.test_owner import COMMAND
from tests.cluster.test_stages import a_row
from tests.in_process import Control
from tests.pending_rows import pending_of, work_table
from tests.small_jobs import a_job

GIGABYTE = 1e9


@pytest.fixture
def job(tmp_path: Path, checkpoints: dict[str, Path]) -> Job:
    editing = EditingSettings(checkpoint=str(checkpoints["5b"]), output=str(tmp_path / "out"))
    return replace(a_job(prompts=PromptSettings(gpus=0)), editing=editing)


def first_of(job: Job, *rows: dict[str, Any], all: bool = True) -> First:
    return First(work_of(work_table(job, rows)), all)


def on(job: Job, gpus: int, memory: float | None = 64 * GIGABYTE) -> Placement:
    """Where the job's groups go on one machine."""
    has = {"CPU": 8.0} | ({"GPU": float(gpus)} if gpus else {})
    has |= {} if memory is None else {"memory": memory}
    return place(job, [Node("this machine", has, has)])


def hold(job: Job, *prompts: str) -> None:
    for prompt in prompts:
        store_of(job).write(prompt, torch.zeros(2, 3))


# Which prompts


def test_the_first_prompts_are_those_of_pending_edits_that_storage_does_not_hold(job: Job) -> None:
    hold(job, "red")
    rows = a_row("a", "red", "blue"), {**a_row("b", "no"), "video_id": "../b"}, a_row("c", "blue")
    assert first_prompts.find_missing(job, first_of(job, *rows)) == Missing(["", "blue"], all=True)
    hold(job, "", "blue")
    assert first_prompts.find_missing(job, first_of(job, *rows)) == Missing([], all=True)


def test_a_large_manifest_is_read_only_as_far_as_its_first_prompts(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [a_row(f"v{i}", f"{i} a", f"{i} b") for i in range(9)]
    monkeypatch.setattr(first_prompts, "FIRST_PROMPTS", 4)
    found = first_prompts.find_missing(job, first_of(job, *rows))
    assert found == Missing(["", "0 a", "0 b", "1 a"], all=False)
    monkeypatch.setattr(first_prompts, "FIRST_ROWS", 1)
    found = first_prompts.find_missing(job, first_of(job, *rows))
    assert found == Missing(["", "0 a", "0 b"], all=False)
    monkeypatch.setattr(first_prompts, "FIRST_ROWS", 9)
    monkeypatch.setattr(first_prompts, "FIRST_PROMPTS", 100)
    assert first_prompts.find_missing(job, first_of(job, *rows)).all


def test_prompts_of_later_waves_may_be_missing_too(job: Job) -> None:
    found = first_prompts.find_missing(job, first_of(job, a_row("a", "red"), all=False))
    assert found == Missing(["", "red"], all=False)


def test_a_storage_that_cannot_be_looked_at_leaves_all_prompts_to_the_ranks(job: Job) -> None:
    nowhere = replace(job, editing=replace(job.editing, output="nosuch://bucket"))
    found = first_prompts.find_missing(nowhere, first_of(job, a_row("a", "red")))
    assert found == Missing(["", "red"], all=True)


# On which device


@pytest.mark.parametrize(
    ("gpus", "encoders", "first"), [(0, 0, False), (2, 0, True), (2, 1, False)]
)
def test_prompts_are_encoded_first_where_videos_take_gpus_and_prompts_have_none(
    job: Job, monkeypatch: pytest.MonkeyPatch, gpus: int, encoders: Any, first: bool
) -> None:
    job = replace(job, cluster=replace(job.cluster, prompts=PromptSettings(gpus=encoders)))
    asked: list[Any] = []

    def encode(as_encoded: Job, missing: Missing, arguments: Any, *_: Any) -> Missing:
        asked.append((as_encoded.editing.precision, missing.prompts, arguments[1]))
        return replace(missing, prompts=[])

    monkeypatch.setattr(first_prompts, "encode_first", encode)
    rows = first_of(job, a_row("a", "red"))
    ready = first_prompts.prepare(job, on(job, gpus), rows, lambda: None)
    assert asked == ([("bf16", ["", "red"], "gpu")] if first else [])
    assert bool(ready.memory) == ready.missing == (gpus == 0), (
        "only an encoder that has something to do takes memory"
    )


def test_the_first_prompts_are_encoded_before_the_graph_is_made(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    class Stopped(Exception):
        pass

    def graph(*_: Any) -> None:
        order.append("graph")
        raise Stopped

    def encode(_: Job, missing: Missing, __: Any, on_wait: Any, ___: Any) -> Missing:
        order.append(f"encoded {missing.prompts}")
        on_wait()
        return missing

    monkeypatch.setattr(dataflow, "connected", lambda *_: nullcontext(on(job, 2)))
    monkeypatch.setattr(dataflow, "configure", lambda _: None)
    monkeypatch.setattr(dataflow, "preflight", lambda _: [])
    monkeypatch.setattr(dataflow, "graph", graph)
    monkeypatch.setattr(dataflow, "Control", Control)
    monkeypatch.setattr(dataflow, "alive_nodes", list)
    monkeypatch.setattr(placing, "alive_nodes", list)
    monkeypatch.setattr(first_prompts, "encode_first", encode)
    shown = list[Any]()
    with pytest.raises(Stopped):
        dataflow.run(job, pending_of(job, [a_row("a", "red")]), shown.append)
    assert order == ["encoded ['', 'red']", "graph"]
    encoding = next(one for one in shown if one.groups)
    assert [(one.stage, one.ready) for one in encoding.groups] == [("prompts", 1)]


@pytest.mark.parametrize(("gpus", "missing"), [(0, True), (2, False)])
def test_text_encoders_reserve_memory_and_run_in_the_precision_of_the_job(
    job: Job, monkeypatch: pytest.MonkeyPatch, gpus: int, missing: bool
) -> None:
    made: dict[str, Any] = {}

    class Rows:
        def repartition(self, **_: Any) -> Rows:
            return self

        def map_batches(self, stage: type, **options: Any) -> Rows:
            made[stage.__name__] = options
            return self

    monkeypatch.setattr("ray.data.from_arrow", lambda _: Rows())
    dataflow.graph(
        job, work_table(job, [a_row("a")]), on(job, gpus), Control(), Prepared(77, missing)
    )
    assert made["EncodePrompts"]["memory"] == 77
    assert [name for name, options in made.items() if "memory" in options] == ["EncodePrompts"]
    as_encoded, _, _, device, _, at_once = made["EncodePrompts"]["fn_constructor_args"]
    assert at_once == missing, "a group that is needed starts beside the others"
    assert (as_encoded.editing.precision, device) == ("bf16" if gpus else "fp32", "cpu")
    assert made["EditVideos"]["fn_constructor_args"][0].editing.precision == "auto"


# With how much memory


def test_the_memory_of_an_encoder_is_that_of_its_weights_in_their_dtype_and_a_margin(
    job: Job,
) -> None:
    info = open_checkpoint(job.editing.checkpoint)
    _, t5 = load_text_encoder(info, torch.float32, "cpu")
    weights = sum(weight.numel() * 4 for weight in t5.parameters())
    assert encoder_memory(encoding(job, on(job, 0))) == int(1.25 * weights)
    assert encoder_memory(encoding(job, on(job, 2))) == int(1.25 * weights / 2)
    gone = replace(job, editing=replace(job.editing, checkpoint="/none"))
    assert encoder_memory(encoding(gone, on(job, 0))) == 0, "the ranks say what is wrong"


@pytest.mark.parametrize(
    ("groups", "nodes", "said"),
    [
        (1, (8,), "a text encoder on CPUs takes 11.9 GB .* the largest node has 8.0 GB"),
        (1, (8, 8), "the largest node has 8.0 GB free for Ray, all 2 together have 16.0 GB"),
        (2, (23, 8), "2 text encoders on CPUs take 11.9 GB of memory of one node each"),
        (1, (12,), None),
        (2, (24,), None),
        (3, (24, 12), None),
        (9, (), None),
    ],
)
def test_encoders_that_no_node_ever_has_the_memory_for_are_refused(
    groups: int, nodes: tuple[int, ...], said: str | None
) -> None:
    given = [node * GIGABYTE for node in nodes]
    if said is None:
        check_memory(int(11.9 * GIGABYTE), groups, given, gpus=True)
        return
    with pytest.raises(CannotRun, match=f"{said}.* Set cluster.prompts.gpus to 1"):
        check_memory(int(11.9 * GIGABYTE), groups, given, gpus=True)


def test_a_job_is_refused_for_memory_only_where_an_encoder_is_needed(job: Job) -> None:
    rows = a_row("a", "red")
    with pytest.raises(CannotRun, match="a text encoder on CPUs takes"):
        first_prompts.prepare(job, on(job, 0, memory=10.0), first_of(job, rows), lambda: None)
    hold(job, "", "red")
    small = on(job, 0, memory=10.0)
    assert first_prompts.prepare(job, small, first_of(job, rows), lambda: None).memory == 0


def test_a_user_reads_why_the_first_prompts_are_encoded_on_cpus(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        first_prompts, "encode_first", lambda _, missing, *__: replace(missing, why="it is full")
    )
    rows = first_of(job, a_row("a", "red"))
    ready = first_prompts.prepare(job, on(job, 1), rows, lambda: None)
    assert ready.memory > 0
    assert ready.notes == (
        "the first prompts are encoded on CPUs, since a GPU could not: it is full. "
        "cluster.prompts.gpus: 1 keeps one for prompts",
    )


# On Ray


class Encoder(EncodePrompts):
    """With ranks that hold no model; they refuse to start beside the file `closed`."""

    def __init__(self, job: Job, *rest: Any) -> None:
        group.rank_command = lambda: COMMAND  # type: ignore[assignment]
        os.environ["SENT_MESSAGES"] = f"{job.editing.output}/sent"
        os.environ["REFUSE_BESIDE"] = f"{job.editing.output}/closed"
        super().__init__(job, *rest)


@pytest.fixture(scope="module")
def one_gpu() -> Iterator[None]:
    """A local cluster that says it has one GPU."""
    import ray

    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.ray
def test_a_gpu_is_free_again_when_the_first_prompts_are_encoded_or_could_not_be(
    job: Job, one_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_prompts, "EncodePrompts", Encoder)
    output = Path(job.editing.output)
    output.mkdir()
    wanted = Missing([f"p{i}" for i in range(20)], all=False)
    arguments = on(job, 1).pools[0].shape, "gpu", 1
    waited: list[None] = []
    for closed in (False, True):
        if closed:
            (output / "closed").touch()
        left = first_prompts.encode_first(job, wanted, arguments, lambda: waited.append(None))
        assert left.prompts == (wanted.prompts if closed else [])
        assert left.why.endswith("ValueError: no such checkpoint now" if closed else "")
        assert free_gpus() == 1, "groups of several sizes are placed next, as if all were free"
    assert waited
    assert (output / "sent").read_text().count('"prompts": ["p') == 2


class Lasting(Encoder):
    """One that is not done before it is stopped."""

    def __init__(self, job: Job, *rest: Any) -> None:
        super().__init__(job, *rest)
        time.sleep(60)


@pytest.mark.ray
def test_an_encoder_that_is_stopped_is_ended_and_leaves_its_prompts(
    job: Job, one_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_prompts, "EncodePrompts", Lasting)
    monkeypatch.setattr(nodes, "SILENT_S", 1.0)
    Path(job.editing.output).mkdir()
    arguments = on(job, 1).pools[0].shape, "gpu", 1
    stopped: list[int] = []
    control = DriverControl()

    def on_wait() -> None:
        state = control.so_far()
        for owner in state.owners.values():
            if owner.pid not in stopped:
                os.kill(owner.pid, signal.SIGSTOP)
                stopped.append(owner.pid)
        nodes.end_silent(state.owners.values(), state.now)

    wanted = Missing(["red"], all=False)
    left = first_prompts.encode_first(job, wanted, arguments, on_wait, control.report)
    assert left.prompts == ["red"]
    assert "died" in left.why
    assert len(stopped) == 1
    with suppress(psutil.NoSuchProcess):
        psutil.Process(stopped[0]).wait(30)
    assert free_gpus() == 1
