"""What the driver asks, compares and removes; the nodes' answers are given."""

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.exceptions import RuntimeEnvSetupError

from cluster import dataflow
from cluster.driver import placing
from cluster.job import CannotRun, Job
from cluster.layout.placement import Placement
from cluster.manifest import ManifestFile, ManifestFiles
from cluster.preflight import driver, node
from cluster.preflight.findings import Answer, AskedNode
from cluster.stages.first_prompts import Prepared
from pipeline.storage import Folder
from tests.drawn_videos import draw_sound
from tests.in_process import Control
from tests.pending_rows import pending_of
from tests.small_jobs import a_job

Asked = dict[AskedNode, Mapping[str, Any]]
Answers = Callable[[Sequence[AskedNode], Asked, Sequence[str]], dict[AskedNode, Answer]]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job of two videos, of which the second one is there."""
    (tmp_path / "b.mp4").write_bytes(draw_sound())
    path = tmp_path / "m.parquet"
    table = pa.table({"video": ["a.mp4", "b.mp4"]})
    pq.write_table(table, path)
    job = a_job()
    return replace(
        job,
        files=ManifestFiles((ManifestFile(str(path)),), table.schema),
        base=str(tmp_path),
        editing=replace(job.editing, checkpoint="embedded", output=str(tmp_path / "made")),
    )


def a_node(number: int, **values: Any) -> dict[str, Any]:
    """A node as Ray describes it."""
    return {
        "NodeID": f"{number}" * 56,
        "NodeManagerHostname": f"worker-{number}",
        "NodeManagerAddress": f"10.0.0.{number}",
        "Alive": True,
        "Resources": {"CPU": 4.0},
    } | values


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Asked]:
    """A cluster of nodes that give such answers; what is asked of them is in the result."""

    def cluster(*nodes: dict[str, Any], answers: Answers | None = None) -> Asked:
        asked: Asked = {}

        def ask(
            nodes: Sequence[AskedNode], requests: Asked, packages: Sequence[str]
        ) -> dict[AskedNode, Answer]:
            asked.update(requests)
            return (answers or all_well)(nodes, requests, packages)

        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
        # Whatever else is used of Ray is missing here.
        monkeypatch.setattr(driver, "ray", SimpleNamespace(nodes=lambda: list(nodes)))
        monkeypatch.setattr(driver, "_ask", ask)
        return asked

    return cluster


def all_well(
    nodes: Sequence[AskedNode], requests: Asked, packages: Sequence[str]
) -> dict[AskedNode, Answer]:
    """Each node makes its checks, here."""
    return {
        one: Answer(
            node.installed(packages),
            {name: node.CHECKS[name](**given) for name, given in requests[one].items()},
        )
        for one in nodes
    }


def left_behind(job: Job) -> list[str]:
    folder = Folder(job.editing.output)
    return folder.list(scratch=True) + folder.list()


def test_nodes_that_can_work_are_passed_and_nothing_is_left_behind(
    job: Job, cluster: Callable[..., Asked]
) -> None:
    asked = cluster(
        a_node(1),
        a_node(2, Alive=False),
        a_node(3, Resources={"GPU": 8.0}),
        a_node(4, Resources={"memory": 1e9}),
    )
    job = replace(job, cluster=replace(job.cluster, device="cpu"))
    assert driver.preflight(job) == []
    assert [node.host for node in asked] == ["worker-1", "worker-3"]
    for checks in asked.values():
        assert list(checks) == ["output", "checkpoint", "decoding", "video"]
        assert checks["video"] == {"uri": f"{job.base}/b.mp4"}, "the first video that is there"
    assert left_behind(job) == []


def test_gpus_are_tried_where_the_job_uses_them_and_a_node_has_some(
    job: Job, cluster: Callable[..., Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "CHECKS", {**node.CHECKS, "gpus": lambda gpus: f"{gpus} too old"})
    asked = cluster(a_node(1), a_node(2, Resources={"CPU": 8.0, "GPU": 4.0}))
    with pytest.raises(CannotRun, match=r"1 of 2 nodes.*\n  worker-2 \(10.0.0.2\): GPUs: 4 too"):
        driver.preflight(job)
    assert ["gpus" in checks for checks in asked.values()] == [False, True]


def test_all_that_is_wrong_stands_in_one_message_and_the_files_go_all_the_same(
    job: Job, cluster: Callable[..., Asked]
) -> None:
    def answers(
        nodes: Sequence[AskedNode], requests: Asked, packages: Sequence[str]
    ) -> dict[AskedNode, Answer]:
        good = all_well(nodes, requests, packages)
        one, two, three = nodes
        # What the second writes goes to a disk of its own.
        Folder(job.editing.output).remove(requests[two]["output"]["ours"])
        old = {**(good[one].installed or {}), "version": "0.0.9"}
        return {
            one: replace(good[one], installed=old),
            two: good[two],
            three: Answer(ending="no answer in 180 s"),
        }

    cluster(*map(a_node, (1, 2, 3)), answers=answers)
    with pytest.raises(CannotRun) as caught:
        driver.preflight(job)
    first, *lines = str(caught.value).splitlines()
    assert first == "the job cannot run on 3 of 3 nodes of the cluster; nothing was started:"
    for line, expected in zip(
        lines,
        (
            "  worker-1 (10.0.0.1): retake 0.0.9 is installed there",
            f"  worker-2 (10.0.0.2): output {job.editing.output}: what the node writes there is not"
            " seen on this machine",
            "  worker-3 (10.0.0.3): no answer in 180 s",
        ),
        strict=True,
    ):
        assert line.startswith(expected)
    assert left_behind(job) == []


def test_a_node_that_leaves_while_it_is_asked_is_no_reason_to_end(
    job: Job, cluster: Callable[..., Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [a_node(1), a_node(2)]

    def leaves(
        asked: Sequence[AskedNode], requests: Asked, packages: Sequence[str]
    ) -> dict[AskedNode, Answer]:
        nodes[1]["Alive"] = False
        here = [one for one in asked if one.host == "worker-1"]
        gone = [one for one in asked if one not in here]
        ending = "Ray cannot run a task there: TaskUnschedulableError"
        return all_well(here, requests, packages) | {one: Answer(ending=ending) for one in gone}

    cluster(*nodes, answers=leaves)
    assert driver.preflight(job) == [
        "node worker-2 (10.0.0.2) left the cluster while it was asked whether it can work: it gets "
        "no groups"
    ]


def test_the_files_go_when_the_check_is_stopped(job: Job, cluster: Callable[..., Asked]) -> None:
    def stopped(
        nodes: Sequence[AskedNode], requests: Asked, packages: Sequence[str]
    ) -> dict[AskedNode, Answer]:
        all_well(nodes, requests, packages)
        assert len(left_behind(job)) == 2
        raise KeyboardInterrupt

    cluster(a_node(1), answers=stopped)
    with pytest.raises(KeyboardInterrupt):
        driver.preflight(job)
    assert left_behind(job) == []


def test_another_version_of_a_package_is_a_warning(job: Job, cluster: Callable[..., Asked]) -> None:
    def answers(
        nodes: Sequence[AskedNode], requests: Asked, packages: Sequence[str]
    ) -> dict[AskedNode, Answer]:
        good = all_well(nodes, requests, packages)
        other = {
            **(good[nodes[1]].installed or {}),
            "packages": {**node.installed(packages)["packages"], "diffusers": "99.0.0"},
        }
        return good | {nodes[1]: replace(good[nodes[1]], installed=other)}

    cluster(a_node(1), a_node(2), answers=answers)
    (warning,) = driver.preflight(job)
    assert warning.startswith("worker-2 (10.0.0.2): diffusers 99.0.0 (")
    assert left_behind(job) == []


class FakeTasks:
    """Of Ray what asks the nodes: the first answers, at the second Ray fails, the third hangs."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.asked: list[str] = []

    def remote(self, **options: Any) -> Any:
        assert options["num_cpus"] == 0, "a node whose CPUs are taken could not answer"
        return lambda function: SimpleNamespace(options=self.options)

    def options(self, scheduling_strategy: Any) -> Any:
        return SimpleNamespace(remote=lambda *_: self.submit(scheduling_strategy.node_id))

    def submit(self, node_id: str) -> str:
        self.asked.append(node_id)
        return node_id

    def wait(self, refs: list[str], num_returns: int, timeout: float) -> Any:
        assert num_returns == len(refs)
        return refs[:2], refs[2:]

    def get(self, ref: str) -> tuple[str, str]:
        if ref == self.asked[1]:
            raise RuntimeEnvSetupError("no\npip there")
        return '{"check": "package", "found": {"version": "1"}}', ""

    def cancel(self, ref: str, force: bool) -> None:
        assert force
        self.cancelled.append(ref)


def test_a_node_where_ray_runs_nothing_has_an_answer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = FakeTasks()
    monkeypatch.setattr(driver, "ray", tasks)
    nodes = [AskedNode(f"{number}" * 56, "host", "10.0.0.1") for number in (1, 2, 3)]
    answers = driver._ask(nodes, {node: {} for node in nodes}, [])
    assert tasks.asked == [node.id for node in nodes]
    assert answers[nodes[0]] == Answer({"version": "1"})
    failed = "RuntimeEnvSetupError: Failed to set up runtime environment. no pip there"
    assert answers[nodes[1]].ending == f"Ray cannot run a task there: {failed}"
    assert answers[nodes[2]].ending.startswith("no answer in 130 s: Ray starts no process there")
    assert tasks.cancelled == [nodes[2].id]


def test_warnings_are_shown_with_the_notes_of_the_placement(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Placement("cpu", "shared", (), ("2 GPUs stay idle",))
    monkeypatch.setattr(dataflow, "connected", lambda *_: nullcontext(place))
    monkeypatch.setattr(dataflow, "alive_nodes", list)
    monkeypatch.setattr(placing, "alive_nodes", list)
    monkeypatch.setattr(dataflow, "preflight", lambda _: ["worker-2: an older torch"])
    monkeypatch.setattr(dataflow, "configure", lambda _: None)
    monkeypatch.setattr(dataflow.first_prompts, "prepare", lambda *_: Prepared())
    monkeypatch.setattr(dataflow, "Control", Control)
    counts = dataflow.run(job, pending_of(job, []), lambda _: None)
    assert counts.notes == ("2 GPUs stay idle", "worker-2: an older torch")


def test_the_versions_that_are_compared_are_those_of_the_requirements() -> None:
    required = driver._required()
    assert required["torch"] == ">=2.6"
    assert "s3fs" not in required, "it belongs to an extra"


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """The cluster of one node that a job starts on a machine with so many GPUs."""

    def local(gpus: float) -> None:
        resources = {"CPU": 4.0, "GPU": gpus} if gpus else {"CPU": 4.0}
        only = a_node(1, NodeManagerHostname=socket.gethostname(), Resources=resources)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(driver, "ray", SimpleNamespace(nodes=lambda: [only]))

    return local


def test_on_the_node_that_the_job_started_here_nothing_is_checked_again(
    job: Job, local: Callable[[float], None]
) -> None:
    local(0)
    before = time.thread_time()
    assert driver.preflight(job) == []
    assert time.thread_time() - before < 0.1
    assert not Path(job.editing.output).exists()


def test_a_torch_without_cuda_is_refused_on_the_machine_itself_too(
    job: Job, local: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "version.py").write_text("__version__ = '2.9.0+cpu'\ncuda: str | None = None\n")
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(node.importlib.util, "find_spec", lambda _: spec)
    local(1)
    with pytest.raises(CannotRun) as caught:
        driver.preflight(job)
    assert str(caught.value).endswith(
        "torch 2.9.0+cpu is built without CUDA, and Ray counts 1 GPU there. Install a build with "
        "CUDA (https://pytorch.org/get-started/locally), or set cluster.device: cpu"
    )
    driver.preflight(replace(job, cluster=replace(job.cluster, device="cpu")))
