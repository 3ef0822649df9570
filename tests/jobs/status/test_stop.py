"""`retake stop` asks a run to end from any machine, waits for it, and says what it finds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.output.lease import Lease, held
from jobs.cli import EXIT_CANNOT_RUN, EXIT_DONE, app
from jobs.status import heartbeat, look, stop
from jobs.status.heartbeat import Heartbeat
from jobs.status.record import NAME
from jobs.status.request import request_in
from jobs.status.state import RunState
from pipeline.storage import Folder
from tests.jobs.status.records import a_status, status_in, until
from tests.jobs.status.test_look import elsewhere, put

RUN = a_status().run


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, seconds in (
        (heartbeat, "BEAT_S", 0.02),
        (heartbeat, "SOONEST_S", 0.01),
        (look, "WATCH_S", 0.1),
        (look, "LOOK_S", 0.02),
        (stop, "LOOK_S", 0.02),
    ):
        monkeypatch.setattr(module, name, seconds)


@pytest.fixture
def output(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "out"))


@pytest.fixture
def running(output: Folder) -> Iterator[Lease]:
    """A run of this process that ends in order where it is asked to."""
    state, asked, begun = RunState(), threading.Event(), threading.Event()
    leases: list[Lease] = []
    heart = Heartbeat(output, state, lambda _: asked.set())

    def run() -> None:
        with heart.beats(), held(output, RUN) as lease, heart.of(lease):
            leases.append(lease)
            state.phase("editing", state="running")
            begun.set()
            assert asked.wait(30)
            state.stops("running work has 20 s to end")
            until(lambda: status_in(output).state == "stopping")
            heart.ends("stopped", 143)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(30)
    until(lambda: status_in(output).phase == "editing")
    yield leases[0]
    asked.set()
    thread.join(30)


def retake_stop(output: Folder, *options: str) -> Result:
    return CliRunner().invoke(app, ["stop", output.uri, *options])


def test_stop_waits_until_the_run_says_that_it_has_ended(output: Folder, running: Lease) -> None:
    result = retake_stop(output)
    assert result.exit_code == EXIT_DONE, result.output
    first, *_, last = result.output.splitlines()
    assert first.startswith(f"asked `retake run` {RUN} on ")
    assert "the run has ended after 0 s: stopped before its end" in last
    assert status_in(output).ending == "stopped"


def test_stop_without_waiting_only_leaves_the_request(
    output: Folder, running: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat.Heartbeat, "_listen", lambda _: None)
    result = retake_stop(output, "--no-wait")
    assert (result.exit_code, len(result.output.splitlines())) == (EXIT_DONE, 1)
    request = request_in(output)
    assert request is not None
    assert request.run == running.run


def test_a_run_that_does_not_answer_is_named_and_the_request_stays(
    output: Folder, running: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat.Heartbeat, "_listen", lambda _: None)
    monkeypatch.setattr(stop, "ANSWER_S", 0.1)
    result = retake_stop(output)
    assert result.exit_code == EXIT_CANNOT_RUN
    assert "has not answered in 0 s. It may be frozen" in result.output
    assert request_in(output) is not None


def test_a_run_that_does_not_end_in_time_is_named(output: Folder) -> None:
    put(output, "lease/000001.json", elsewhere(), 1)
    put(output, NAME, a_status(state="stopping", phase="stopping").as_json(), 1)
    result = retake_stop(output, "--timeout", "1")
    assert result.exit_code == EXIT_CANNOT_RUN
    assert "is stopping, and has not ended after 1 s" in result.output


def test_a_run_that_has_ended_needs_no_stop(output: Folder) -> None:
    with held(output, RUN):
        ended = a_status(state="ended", ending="ok", phase="ended: all edits are done")
        put(output, NAME, ended.as_json(), 100)
    result = retake_stop(output)
    assert result.exit_code == EXIT_DONE
    assert result.output == (f"run {RUN} on node-3 has ended already: ended: all edits are done\n")
    assert request_in(output) is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no run is known there"),
        (
            {"lease/000001.json": (elsewhere(renewed_s=-300), 300)},
            f"`retake run` {RUN} on node-3",
        ),
        (
            {"lease/000001.json": (elsewhere("", command="retake gc"), 1)},
            "`retake gc` on node-3",
        ),
        ({NAME: (a_status(run="").as_json(), 1)}, "a run is about to begin there"),
    ],
    ids=["nothing", "killed", "another command", "not begun"],
)
def test_where_no_run_can_be_stopped_it_says_why(
    output: Folder, files: dict[str, tuple[bytes, float]], message: str
) -> None:
    for name, (data, age_s) in files.items():
        put(output, name, data, age_s)
    result = retake_stop(output)
    assert result.exit_code == EXIT_CANNOT_RUN
    assert message in result.output
    assert request_in(output) is None
