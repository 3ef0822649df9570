"""Ray for the length of a run: started here, joined, or why not."""

import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import worker
from ray._private.utils import check_version_info

from cluster import connection, quiet
from cluster.connection import HEAD_TRIES, connected, reason
from cluster.driver import sudden_end
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


def test_ray_puts_no_handler_of_sigterm_in_the_place_of_the_commands(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())

    def init(**_: Any) -> None:
        connection.utils.set_sigterm_handler(lambda *_: sys.exit(15))
        signal.raise_signal(signal.SIGTERM)  # while Ray starts

    monkeypatch.setattr(fake_ray, "init", init)
    try:
        with connected(a_job()):
            assert came.is_set(), "the command did not learn of the signal"
        assert "set_sigterm_handler" in inspect.getsource(inspect.unwrap(ray.init))
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


def test_what_a_failed_start_left_running_is_ended_before_the_next_try(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray forgets the processes of a start that fails, and they would stay."""
    left: list[subprocess.Popen[bytes]] = []
    ended: list[bool] = []

    def init(**_: Any) -> None:
        ended.extend(one.wait(10) == -signal.SIGKILL for one in left)
        left.append(subprocess.Popen(["sleep", "60"]))
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(fake_ray, "init", init)
    before = subprocess.Popen(["sleep", "60"])
    try:
        complaint()
        assert ended == [True]
        assert [one.wait(10) for one in left] == [-signal.SIGKILL] * 2
        assert before.poll() is None, "it was there before Ray"
    finally:
        before.kill()
        before.wait()


def test_a_run_whose_process_ends_all_at_once_has_a_last_word() -> None:
    """As Ray ends it: its native code exits without a word a minute after the head is gone."""
    program = (
        "import os\nfrom cluster.driver.sudden_end import last_word\n"
        "with last_word():\n    pass\n"
        "with last_word():\n    os._exit(1)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=False, timeout=60
    )
    assert run.returncode == 1
    assert run.stderr == f"\n{sudden_end.MESSAGE}\n"  # of the second block alone
    for part in ("cluster's head", "Results are stored", "`ray status`", "same command again"):
        assert part in run.stderr


def test_a_cluster_whose_nodes_are_all_gone_is_not_told_to_add_some(fake_ray: FakeRay) -> None:
    fake_ray.nodes()[1]["Alive"] = False
    text = complaint()
    for part in ("no node", "raylet", "results so far are stored", "same command again"):
        assert part in text


def test_what_ray_pushes_to_its_driver_goes_into_a_file_of_its_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray's own listener reads a message, as of an owner that died."""
    stopped = threading.Event()

    class Pushed:
        gcs_error_subscriber = current_job_id = None

        def subscribe(self) -> None: ...

        def binary(self) -> bytes:
            return b"job"

        def poll(self) -> tuple[None, dict[str, Any]]:
            stopped.set()
            return None, {"job_id": b"job", "error_message": "A worker died: https://u:p@h/a"}

        def get_logs_dir_path(self) -> str:
            return str(tmp_path)

    by_itself = worker.print_to_stdstream
    pushed = Pushed()
    pushed.gcs_error_subscriber = pushed.current_job_id = pushed  # type: ignore[assignment]
    monkeypatch.setattr(worker, "_global_node", pushed)
    with quiet.into_a_file():
        worker.listen_error_messages(pushed, stopped)
    (log,) = tmp_path.iterdir()
    assert log.name == f"retake-{os.getpid()}.log"
    assert log.read_text().endswith("A worker died: https://***@h/a\n")
    assert capsys.readouterr() == ("", "")
    assert worker.print_to_stdstream is by_itself
