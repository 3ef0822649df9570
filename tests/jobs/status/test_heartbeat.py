"""The heartbeat tells how a run is doing, and costs it nothing, whatever storage does."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.job import CannotRun
from cluster.output.lease import Lease, LeaseLost, held
from cluster.progress import Counts, Failure, Groups
from jobs.cli import EXIT_CANNOT_RUN, EXIT_SOME_FAILED, app
from jobs.status import heartbeat
from jobs.status.heartbeat import Heartbeat
from jobs.status.record import NAME, WAITING
from jobs.status.request import NAME as REQUEST
from jobs.status.request import StopRequest
from jobs.status.state import RunState
from pipeline.storage import Folder
from tests.jobs.status.records import a_status, status_in, until
from tests.jobs.test_stopping import what_a_signal_leaves
from tests.small_jobs import a_job_file

__all__ = ["what_a_signal_leaves"]  # a fixture that is used without being named


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.02)
    monkeypatch.setattr(heartbeat, "SOONEST_S", 0.01)
    yield
    assert not [t for t in threading.enumerate() if t.name == "heartbeat"], "it went on"


@pytest.fixture
def output(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "new"))


@pytest.fixture
def job(tmp_path: Path) -> str:
    """A job file whose output folder is new."""
    return a_job_file(tmp_path)


def a_heartbeat(output: Folder, asked: list[StopRequest] | None = None) -> Heartbeat:
    state = RunState()
    state.phase("editing", state="running")
    return Heartbeat(output, state, (asked if asked is not None else []).append)


def test_a_run_shows_all_of_its_way(
    job: str, output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def run(job: Any, rows: Any, on_progress: Any, **_: Any) -> Counts:
        until(lambda: status_in(output).state == "starting")
        seen.append(status_in(output))
        late = Failure("v9", "red", "deadline", "no progress for 600 s")
        groups = (Groups("editing", 1, 1, "denoising step 3 of 31"),)
        counts = Counts(
            ("one node is idle",), groups, 4, 1, 2, 1, {"deadline": 1}, (late,), (late,)
        )
        on_progress(counts)
        until(lambda: status_in(output).made == 2)
        seen.append(status_in(output))
        return counts

    monkeypatch.setattr("cluster.dataflow.run", run)
    assert CliRunner().invoke(app, ["run", job]).exit_code == EXIT_SOME_FAILED
    started, running, ended = *seen, status_in(output)
    assert (started.state, started.edits, started.exit_status) == ("starting", 1, None)
    assert started.phase.startswith("starting Ray")
    assert (running.state, running.phase) == ("running", "editing")
    assert (running.made, running.failed, running.failed_by_code) == (2, 1, {"deadline": 1})
    assert running.stages[0].doing == "denoising step 3 of 31"
    assert running.last_errors[0].message == "no progress for 600 s"
    assert running.notes == ("one node is idle",)
    assert (ended.state, ended.ending, ended.exit_status) == ("ended", "failed edits", 3)
    assert started.run == running.run == ended.run
    assert output.list("") == ["job.yaml", "lease/000001.json", NAME, "summary.json"]


@pytest.mark.parametrize(
    ("error", "ending", "status"),
    [
        (CannotRun("the cluster is too small"), "failed", EXIT_CANNOT_RUN),
        (RuntimeError("a fault of the program"), "failed", EXIT_CANNOT_RUN),
        (signal.SIGTERM, "stopped", 143),
    ],
)
def test_the_last_beat_says_how_a_run_ended(
    job: str, output: Folder, monkeypatch: pytest.MonkeyPatch, error: Any, ending: str, status: int
) -> None:
    def run(*_: Any, **__: Any) -> Counts:
        if isinstance(error, Exception):
            raise error
        signal.raise_signal(error)
        return Counts()

    monkeypatch.setattr("cluster.dataflow.run", run)
    assert CliRunner().invoke(app, ["run", job]).exit_code == status
    last = status_in(output)
    assert (last.state, last.ending, last.exit_status) == ("ended", ending, status)
    assert last.error == (None if ending == "stopped" else str(error))


def test_a_request_ends_the_run_that_it_names_as_sigterm_does(
    job: str, output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(job: Any, rows: Any, on_progress: Any, *, stop: Any, **_: Any) -> Counts:
        on_progress(Counts(groups=(Groups("editing", 1, 1),), inverted=1))
        StopRequest.now(job.run, "ann on node-3").write(output)
        assert stop.wait(20)
        on_progress(Counts(groups=(Groups("editing", 1, 1),), inverted=1))
        until(lambda: status_in(output).state == "stopping")
        return Counts()

    monkeypatch.setattr("cluster.dataflow.run", run)
    result = CliRunner().invoke(app, ["run", job])
    assert result.exit_code == 143
    assert "note: asked to stop by ann on node-3 (`retake stop`)" in result.output
    last = status_in(output)
    assert (last.ending, last.exit_status, last.phase) == ("stopped", 143, "stopped before its end")
    assert REQUEST not in output.list()


def test_a_request_to_an_earlier_run_stops_no_later_one(output: Folder) -> None:
    StopRequest.now("20200101T000000.000000", "ann").write(output)
    asked: list[StopRequest] = []
    heart = a_heartbeat(output, asked)
    with heart.beats(), held(output, "20261128T100000.000000") as lease, heart.of(lease):
        first = status_in_time(output)
        until(lambda: status_in(output).updated_at > first)
        assert not asked
        StopRequest.now(lease.run, "ann").write(output)
        until(lambda: asked)
        again = status_in(output).updated_at
        until(lambda: status_in(output).updated_at > again)
    assert [one.run for one in asked] == [lease.run], "a run is asked once"


def status_in_time(output: Folder) -> str:
    until(lambda: status_in(output))
    return status_in(output).updated_at


def test_it_goes_on_when_storage_is_back(tmp_path: Path) -> None:
    output = Folder(str(tmp_path / "out"))
    heart = a_heartbeat(output)
    with heart.beats(), held(output, "20261128T100000.000000") as lease, heart.of(lease):
        status_in_time(output)
        (tmp_path / "out").rename(tmp_path / "away")
        (tmp_path / "out").touch()  # nothing can be written below a file
        beats = heart.state.status().updated_at
        until(lambda: heart.state.status().updated_at > beats)
        (tmp_path / "out").unlink()
        (tmp_path / "away").rename(tmp_path / "out")
        before = status_in(output).updated_at
        until(lambda: status_in(output).updated_at > before)


def test_storage_that_hangs_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "LAST_S", 0.05)
    output, hangs, healed = Folder(str(tmp_path / "out")), threading.Event(), threading.Event()
    heart = a_heartbeat(output)
    write = Folder.write

    def hanging(folder: Folder, name: str, data: bytes) -> None:
        if name == NAME:
            hangs.set()
            assert healed.wait(30)
        write(folder, name, data)

    with heart.beats(), held(output, "20261128T100000.000000") as lease:
        monkeypatch.setattr(Folder, "write", hanging)
        with heart.of(lease):
            assert hangs.wait(30)
            began = time.monotonic()
    assert time.monotonic() - began < 5
    healed.set()
    heart._thread.join(30)


def test_a_request_that_comes_when_the_run_is_over_ends_no_process(output: Folder) -> None:
    asked: list[StopRequest] = []
    heart = a_heartbeat(output, asked)
    with held(output, "20261128T100000.000000") as lease:
        with heart.beats(), heart.of(lease):
            pass
        StopRequest.now(lease.run, "ann").write(output)
        heart._listen()
    assert not asked


class Lost(Lease):
    """A lease that another run has taken over."""

    def check(self, *, sure: bool = False) -> None:
        raise LeaseLost("another run has taken it over")


def test_a_run_that_lost_its_folder_leaves_the_record_of_the_other(output: Folder) -> None:
    other = a_status(run="20261128T110000.000000")
    with held(output, "20261128T100000.000000") as lease:
        output.write(NAME, other.as_json())
        heart = a_heartbeat(output)
        with heart.beats(), heart.of(Lost(output, lease.holder, lease.number)):
            heart._thread.join(30)
    assert status_in(output) == other


def test_a_run_that_waits_leaves_the_record_of_the_one_that_it_waits_for(output: Folder) -> None:
    heart = a_heartbeat(output)
    with held(output, "20261128T100000.000000") as first:
        other = a_status(run=first.run)
        output.write(NAME, other.as_json())
        with heart.beats():
            heart.state.put(state="waiting for the lease")
            until(lambda: status_in(output, WAITING).state == "waiting for the lease")
            assert status_in(output) == other
            first.release()
            with held(output, "20261128T110000.000000") as lease, heart.of(lease):
                until(lambda: status_in(output).run == lease.run)
                until(lambda: WAITING not in output.list())


def test_a_run_that_is_refused_at_once_leaves_no_record(
    job: str, output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 10.0)
    refused = CliRunner().invoke(app, ["run", job, "--set", "checkpoint=/nowhere"])
    assert refused.exit_code == EXIT_CANNOT_RUN
    assert NAME not in output.list()
