"""Whether a run is alive, seen from another machine whose clock may differ."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cluster.output.holder import Holder
from cluster.output.lease import held
from jobs.display.seen import as_values, exit_status, line, summary
from jobs.status import look as module
from jobs.status.look import Seen, look
from jobs.status.record import NAME, WAITING, Status
from jobs.status.totals import Totals, totals_of
from pipeline.storage import Folder
from tests.jobs.status.records import a_status, at
from tests.report_results import make_row, write_rows

RUN = a_status().run
LEASE = "lease/000001.json"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_S", 0.1)
    monkeypatch.setattr(module, "LOOK_S", 0.02)


@pytest.fixture
def output(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "out"))


def elsewhere(run: str = RUN, *, renewed_s: float = -4.0, command: str = "retake run") -> bytes:
    """The lease of a process on another machine."""
    holder = Holder.this_process(run, command, ())
    return holder.as_json(host="node-3", renewed=at(renewed_s))


def put(output: Folder, name: str, data: bytes, age_s: float) -> None:
    """A file that the storage says was written so long ago."""
    output.write(name, data)
    then = time.time() - age_s
    os.utime(output.path(name), (then, then))


def a_run(output: Folder, status: Status | None, *, ahead_s: float = 0.0, age_s: float) -> None:
    """A run on a machine whose clock is ahead by so much, and that was last heard so long ago."""
    clock = ahead_s - age_s
    put(output, LEASE, elsewhere(renewed_s=clock), age_s)
    if status is not None:
        put(output, NAME, a_status(**{**vars(status), "updated_at": at(clock)}).as_json(), age_s)


@pytest.mark.parametrize("ahead_s", [0.0, 300.0, -300.0])
def test_a_run_with_a_young_sign_is_alive_whatever_its_clock_says(
    output: Folder, ahead_s: float
) -> None:
    a_run(output, a_status(phase="loading", waiting_for="1 of 2 groups"), ahead_s=ahead_s, age_s=4)
    seen = look(output)
    assert (seen.life, exit_status(seen, None)) == ("alive", 0)
    assert seen.age_s == pytest.approx(4, abs=2)
    assert summary(seen) == "alive: loading: 1 of 2 groups (for 0 s)"


@pytest.mark.parametrize("ahead_s", [0.0, 300.0, -300.0])
def test_a_run_without_a_sign_is_watched_and_then_taken_for_killed(
    output: Folder, ahead_s: float
) -> None:
    a_run(output, a_status(), ahead_s=ahead_s, age_s=180)
    watched: list[str] = []
    seen = look(output, watched.append)
    assert (seen.life, exit_status(seen, None)) == ("silent", 1)
    assert summary(seen) == (
        "no sign for 3 min 0 s; probably killed; run the same command again to go on"
    )
    assert watched == ["the last sign of life is 180 s old; watching for another one, 0 s at most"]


def test_where_the_storage_gives_no_times_a_clock_that_is_ahead_is_never_a_negative_age(
    output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Folder, "modified", lambda *_: None)
    a_run(output, a_status(), ahead_s=40, age_s=0)

    def beat(text: str) -> None:
        assert "of a clock that differs from this one" in text
        a_run(output, a_status(), ahead_s=41, age_s=0)

    seen = look(output, beat)
    assert (seen.life, seen.age_s, seen.sign_s) == ("alive", None, 0.0)
    assert line(seen).endswith("(a moment ago; the clocks of the machines differ)")


def test_a_run_that_beats_while_it_is_watched_is_alive(output: Folder) -> None:
    a_run(output, a_status(), age_s=100)
    seen = look(output, lambda _: a_run(output, a_status(made=9), age_s=0))
    assert seen.status is not None
    assert (seen.life, seen.status.made) == ("alive", 9)


def test_a_run_whose_status_is_old_lives_by_its_lease(output: Folder) -> None:
    a_run(output, a_status(), age_s=300)
    put(output, LEASE, elsewhere(), 3)
    seen = look(output)
    assert seen.life == "alive"
    assert "5 min 0 s ago; the run renews its lease" in line(seen)


def test_a_run_that_has_ended_is_not_killed_though_its_lease_was_not_released(
    output: Folder,
) -> None:
    ended = a_status(state="ended", ending="ok", exit_status=0, phase="ended: all edits are done")
    a_run(output, ended, age_s=600)
    seen = look(output)
    assert (seen.life, exit_status(seen, None)) == ("ended", 0)
    assert summary(seen) == "ended: all edits are done"


KILLED = """
import sys
from cluster.output.lease import held
from pipeline.storage import Folder
with held(Folder(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_driver_that_was_killed_on_this_machine_is_known_to_be_gone_at_once(
    output: Folder,
) -> None:
    program = [sys.executable, "-c", KILLED, output.uri, RUN]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(program, **pipes) as process:
        assert process.stdout
        process.stdout.readline()
        put(output, NAME, a_status().as_json(), 1)
        assert look(output).life == "alive"
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    seen = look(output)
    assert (seen.life, exit_status(seen, None)) == ("killed", 1)
    assert summary(seen).startswith("killed: its process is gone from this machine; run the same")


@pytest.mark.parametrize(
    ("ending", "status"), [("ok", 0), ("failed edits", 3), ("failed", 1), ("stopped", 1)]
)
def test_a_run_that_ended_has_the_exit_status_of_its_end(
    output: Folder, ending: Any, status: int
) -> None:
    with held(output, RUN):
        ended = a_status(state="ended", ending=ending, phase="ended", edits=9, made=6)
        put(output, NAME, ended.as_json(), 7200)
    seen = look(output)
    assert (seen.life, exit_status(seen, None)) == ("ended", status)
    assert summary(seen) == "ended; 3 edits left: run the same command again to go on"


def test_the_record_of_an_earlier_run_is_not_that_of_the_one_that_holds_the_folder(
    output: Folder,
) -> None:
    put(output, NAME, a_status(state="ended", ending="ok").as_json(), 3)
    put(output, LEASE, elsewhere("20261128T110000.000000"), 3)
    seen = look(output)
    assert (seen.life, seen.status) == ("alive", None)
    assert summary(seen).startswith("`retake run` 20261128T110000.000000 on node-3")


def test_another_command_that_holds_the_folder_is_no_run(output: Folder) -> None:
    put(output, LEASE, elsewhere("", command="retake gc"), 3)
    assert look(output).life == "unknown"
    put(output, NAME, a_status(state="ended", ending="ok").as_json(), 3)
    assert look(output).life == "ended"
    put(output, NAME, a_status().as_json(), 300)
    assert look(output).life == "silent", "the run was killed: another command has its folder"


def test_a_run_that_waits_for_the_folder_is_shown(output: Folder) -> None:
    a_run(output, a_status(), age_s=180)
    waits = a_status(run="", host="node-4", state="waiting for the lease")
    put(output, WAITING, waits.as_json(), 5)
    seen = look(output)
    assert seen.waiting == waits
    put(output, WAITING, waits.as_json(), 500)
    assert look(output).waiting is None, "it was killed, too"


def test_an_output_of_an_older_version_is_judged_by_its_results(output: Folder) -> None:
    assert totals_of(output) is None
    rows = [make_row(edit_id=edit) for edit in ("red", "blue")]
    failed = make_row(edit_id="green", status="failed", error_code="deadline", error="late")
    write_rows(output.uri, [*rows, failed])
    seen, totals = look(output), totals_of(output)
    assert seen == Seen(None, "unknown")
    assert totals == Totals(made=2, failed=1, failed_by_code={"deadline": 1})
    assert (exit_status(seen, totals), exit_status(seen, None)) == (3, 1)
    assert as_values(seen, totals)["results"]["made"] == 2


def test_a_storage_says_when_it_wrote_a_file(output: Folder) -> None:
    for folder in (output, Folder("memory://times")):
        before = datetime.now(UTC) - timedelta(seconds=1)
        folder.write("a", b"a")
        written = folder.modified("a")
        assert written is not None
        assert before <= written <= datetime.now(UTC)
        assert folder.modified("b") is None
