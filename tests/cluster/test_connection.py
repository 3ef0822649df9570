"""Ray for the length of a run: started here, joined, or why not."""

import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ray._private.utils import check_version_info

from cluster import connection
from cluster.connection import HEAD_TRIES, connected, reason
from cluster.job import CannotRun
from cluster.settings import GroupSettings
from tests.small_jobs import a_job


class FakeRay:
    """Ray where nothing runs: it keeps what `init` was asked, and has the nodes given to it."""

    def __init__(self, nodes: list[dict[str, Any]]) -> None:
        self.asked: list[dict[str, Any]] = []
        self.failures: list[Exception] = []
        self.shutdowns = 0
        self._nodes = nodes

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: Any) -> None:
        self.asked.append(options)
        if self.failures:
            raise self.failures.pop(0)

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes

    def shutdown(self) -> None:
        self.shutdowns += 1


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    dead = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
    ray = FakeRay([dead, {"Alive": True, "Resources": {"CPU": 8.0}}])
    for name, node in zip("ab", ray.nodes(), strict=True):
        node.update(NodeID=name, NodeManagerAddress=f"10.0.0.{name}")
    monkeypatch.setattr(connection, "ray", ray)
    monkeypatch.setattr(connection, "available_resources_per_node", dict)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv(HEAD_TRIES, "1")  # which a run sets: it is not to stay
    return ray


def complaint() -> str:
    with pytest.raises(CannotRun) as caught, connected(a_job()):
        pass
    return str(caught.value)


@contextmanager
def a_head() -> Iterator[str]:
    """The address of something that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as head:
        yield f"127.0.0.1:{head.getsockname()[1]}"


def test_a_cluster_that_has_no_gpu_yet_is_named_where_a_job_takes_what_there_is(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def notes(**cluster: Any) -> tuple[str, ...]:
        with connected(a_job(**cluster)) as placement:
            return placement.notes

    assert notes() == ()  # this machine has none, and its owner knows
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert notes() == (connection.NO_GPUS,)
    assert notes(device="cpu") == ()


@pytest.mark.parametrize("address", [None, "", "local"])
def test_without_an_address_a_cluster_is_started_whatever_runs_on_this_machine(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with connected(a_job()) as placement:
        assert (placement.device, placement.layout) == ("cpu", "shared"), "a dead node was counted"
        assert fake_ray.shutdowns == 0
    (asked,) = fake_ray.asked
    assert asked["address"] == "local"
    assert asked["num_cpus"] >= 5
    assert fake_ray.shutdowns == 1


def test_the_cluster_at_a_given_address_is_joined_as_it_is(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_head() as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with connected(a_job()):
            pass
    (asked,) = fake_ray.asked
    assert asked.keys().isdisjoint({"address", "num_cpus", "include_dashboard"})
    assert fake_ray.shutdowns == 1


def test_a_cluster_that_the_caller_had_joined_is_left_as_it_is(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_ray, "is_initialized", lambda: True)
    with connected(a_job()):
        pass
    assert (fake_ray.asked, fake_ray.shutdowns) == ([], 0)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto"])
def test_an_address_where_no_cluster_is_is_named_with_the_way_out(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    fake_ray.failures = [ConnectionError("nobody is there")]
    assert re.search(f"RAY_ADDRESS is '{address}'.*unset RAY_ADDRESS", complaint())


def test_a_cluster_with_another_ray_is_refused_with_both_versions_in_one_line(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        check_version_info({"ray_version": "2.9.1", "python_version": "3.9.2"}, "this machine")
    except RuntimeError as mismatch:
        fake_ray.failures = [mismatch]
    with a_head() as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        text = complaint()
    for part in ("Ray: 2.9.1", "Python: 3.9.2", "Install the cluster's versions of Ray and Python"):
        assert part in text
    assert "\n" not in text


def test_a_start_that_fails_once_is_tried_again(fake_ray: FakeRay) -> None:
    fake_ray.failures = [Exception("The current node timed out during startup.")]
    with connected(a_job()) as placement:
        assert placement.device == "cpu"
    assert len(fake_ray.asked) == 2


def test_a_ray_that_does_not_start_is_named_with_what_to_look_at(fake_ray: FakeRay) -> None:
    fake_ray.failures = [Exception("The current node timed out during startup.")] * 2
    text = complaint()
    assert "did not start on this machine, in 2 tries: Exception: The current node timed" in text
    for part in ("memory", "/dev/shm", "ports", "RAY_TMPDIR", "`ray stop`", "RAY_ADDRESS"):
        assert part in text


def test_a_real_ray_that_cannot_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(connection.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connection.ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_TMPDIR", "/proc/no/such/folder")
    text = complaint()
    assert "did not start on this machine" in text
    assert "/proc/no" in text
    assert "Traceback" not in text


def test_a_reason_has_no_traceback_of_another_process() -> None:
    trace = (
        "Last error: Traceback (most recent call last):\n  File x, line 1\nRpcError: timed out\n"
    )
    assert reason(RuntimeError(trace)) == "RuntimeError: Last error: RpcError: timed out"


def test_the_handler_of_sigterm_that_ray_puts_in_place_does_not_stay(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())

    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(15)))
        signal.raise_signal(signal.SIGTERM)  # while Ray starts

    monkeypatch.setattr(fake_ray, "init", init)
    try:
        with pytest.raises(SystemExit), connected(a_job()):
            pass
        assert came.is_set(), "the command did not learn of the signal"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_gpus_that_a_job_which_just_ended_still_holds_are_waited_for_a_moment(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ray.nodes()[1]["Resources"]["GPU"] = 4.0
    free = [{"b": {"CPU": 8.0, "GPU": gpus}} for gpus in (1.0, 2.0, 4.0)]
    monkeypatch.setattr(connection, "available_resources_per_node", lambda: free.pop(0))
    monkeypatch.setattr(connection.time, "sleep", lambda _: None)
    with connected(a_job(reconstruction=GroupSettings(groups=2))) as placement:
        assert placement.pools[-1].groups == 2
    assert not free


def test_gpus_that_another_job_holds_are_left_to_it(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ray.nodes()[1]["Resources"]["GPU"] = 4.0
    held = {"b": {"CPU": 8.0, "GPU": 1.0}}
    monkeypatch.setattr(connection, "available_resources_per_node", lambda: held)
    monkeypatch.setattr(connection, "FREED_S", 0.0)
    with connected(a_job()) as placement:
        assert placement.pools[-1].groups == 1
        assert placement.notes == (
            "other jobs hold 3 GPUs of node 10.0.0.b: this job does without them",
        )
    with pytest.raises(CannotRun, match="has 4, of which 1 are free: other jobs hold the rest"):
        with connected(a_job(reconstruction=GroupSettings(groups=2))):
            pass


def test_ray_waits_for_a_block_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners watch for progress: a block may take hours."""
    from ray.data import DataContext

    monkeypatch.setattr(DataContext, "get_current", lambda: context)
    context = DataContext()
    connection.configure(a_job())
    assert context.execution_no_progress_timeout_s == -1
