"""One writer of an output folder: who is refused, who waits, and what takes a lease over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cluster.job import CannotRun
from cluster.output import lease as leases
from cluster.output.exclusive import create
from cluster.output.holder import Holder
from cluster.output.lease import (
    LeaseHeld,
    LeaseLost,
    LeaseUnsure,
    held,
    holder_of,
    runs_stopped_by_signal,
)
from pipeline.storage import Folder
from tests.fault_proxy import Fault, faulty
from tests.s3_server import s3_server

QUICK = {"RENEW_S": 0.1, "STALE_S": 1.0, "UNSURE_S": 0.5, "ASK_S": 0.02}


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    with s3_server() as access, pytest.MonkeyPatch.context() as patch:
        for name, value in access.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("bucket")
        yield access


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An output folder, on each kind of storage."""
    if request.param == "local":
        return Folder(str(tmp_path / "out"))
    if request.param == "s3":
        request.getfixturevalue("s3")
    name = "bucket" if request.param == "s3" else "out"
    return Folder(f"{request.param}://{name}/{uuid.uuid4().hex}")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "out"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in QUICK.items():
        monkeypatch.setattr(leases, name, value)


def left_by(output: Folder, **values: Any) -> Holder:
    """A lease that a process of another machine has left."""
    holder = replace(Holder.this_process("r0", "retake run", ()), host="node-7", **values)
    assert create(output, "lease/000007.json", holder.as_json())
    if output.is_local and values:
        os.utime(output.path("lease/000007.json"), (0, 0))
    return holder


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def test_a_second_writer_is_refused_and_reads_who_holds_the_folder(output: Folder) -> None:
    with held(output, "r1") as lease:
        lease.check()
        holder = holder_of(output)
        assert holder
        assert holder.run == "r1"
        with pytest.raises(LeaseHeld) as refused, held(output, "r2"):
            pass
    text = str(refused.value)
    assert f"output {output.uri}: `retake run` r1 on {holder.host} (pid {os.getpid()}, " in text
    assert f"user {holder.user}) since {holder.since[:10]} {holder.since[11:19]} UTC" in text
    assert "a sign of life 0 s ago" in text
    assert "--wait" in text


def test_a_folder_that_was_released_is_free_and_one_small_file_stays(output: Folder) -> None:
    for run in ("r1", "r2", "r3"):
        with held(output, run) as lease:
            assert lease.notes == ()
            assert lease.before is None
        assert holder_of(output) is None
    assert output.list("lease") == ["lease/000003.json"]


def test_of_many_that_try_at_once_one_holds_the_folder(output: Folder) -> None:
    output.write("before", b"")
    start = threading.Barrier(8)

    def attempt(number: int) -> bool:
        start.wait()
        return create(output, "lease/000001.json", f"{number}".encode())

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1


def test_one_that_waits_begins_when_the_other_has_ended(output: Folder, quick: None) -> None:
    waits, order = threading.Event(), []

    def on_wait(text: str) -> None:
        order.append(text)
        waits.set()

    def second() -> None:
        with held(output, "r2", wait=True, on_wait=on_wait):
            order.append("r2")

    with held(output, "r1"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(20)
        order.append("r1")
    thread.join(20)
    assert order[0].startswith("waiting for `retake run` r1 on ")
    assert order[1:] == ["r1", "r2"]


def test_a_stale_lease_of_another_machine_is_taken_over_with_a_note(
    output: Folder, quick: None
) -> None:
    left_by(output, renewed=ago(3600))
    with held(output, "r1") as lease:
        assert lease.number == 8
        assert lease.before
        assert lease.before.run == "r0"
        assert "r0 on node-7" in lease.notes[0]
        assert "has given no sign of life for 3600 s" in lease.notes[0]
        assert output.list("lease") == ["lease/000008.json"]


def test_a_holder_with_a_wrong_clock_that_lives_is_not_taken_over(
    folder: Folder, quick: None
) -> None:
    holder = left_by(folder, renewed=ago(3600))
    looks = []

    def lives(text: str) -> None:
        looks.append(text)
        folder.write("lease/000007.json", holder.as_json(renewed=ago(3599)))
        os.utime(folder.path("lease/000007.json"), (1, 1))

    with pytest.raises(LeaseHeld, match="node-7"), held(folder, "r1", on_wait=lives):
        pass
    assert "which seems to be gone" in looks[0]


def test_one_whose_clock_is_in_the_future_is_taken_over_once_it_stands_still(
    folder: Folder, quick: None
) -> None:
    left_by(folder, renewed=ago(-3600))
    with held(folder, "r1", wait=True) as lease:
        assert "has given no sign of life for" in lease.notes[0]


def test_a_damaged_lease_is_taken_over_with_a_note(folder: Folder, quick: None) -> None:
    folder.write("lease/000004.json", b'{"run": "r')
    with held(folder, "r1", wait=True) as lease:
        assert lease.number == 5
        assert "lease/000004.json is damaged" in lease.notes[0]


HOLDS = f"""
import os, sys, time
from cluster.output import lease as leases
from cluster.output.lease import held
from pipeline.storage import Folder
for name, value in {QUICK}.items():
    setattr(leases, name, value)
output = Folder(sys.argv[1])
with held(output, "r1") as lease:
    print("holds", flush=True)
"""
SLEEPS_THEN_WRITES = f"""{HOLDS}
    lease.check()
    os.kill(os.getpid(), {int(signal.SIGSTOP)})
    lease.check()
    output.write("numbers", b"1")
"""


def started(program: str, output: Folder) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, output.uri],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "holds\n"
    return process


def test_a_lease_whose_process_was_killed_on_this_machine_is_free_at_once(folder: Folder) -> None:
    process = started(f"{HOLDS}    time.sleep(60)", folder)
    with pytest.raises(LeaseHeld, match=f"pid {process.pid}"), held(folder, "r2"):
        pass
    process.kill()
    process.communicate()
    with held(folder, "r2") as lease:  # with the true times: nothing is waited for
        assert f"pid {process.pid}" in lease.notes[0]
        assert "has ended without a word" in lease.notes[0]
        assert lease.runs_stopped == frozenset()


@pytest.mark.parametrize("place", ["local", pytest.param("s3", marks=pytest.mark.s3)])
def test_a_frozen_writer_that_wakes_after_a_take_over_writes_nothing(
    place: str, tmp_path: Path, quick: None, request: pytest.FixtureRequest
) -> None:
    if place == "s3":
        request.getfixturevalue("s3")
    output = Folder(str(tmp_path) if place == "local" else f"s3://bucket/{uuid.uuid4().hex}")
    process = started(SLEEPS_THEN_WRITES, output)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    with held(output, "r2", wait=True) as lease:
        assert "no sign of life" in lease.notes[0]
        os.kill(process.pid, signal.SIGCONT)
        _, errors = process.communicate(timeout=30)
        lease.check()
        assert not output.exists("numbers")
    assert process.returncode == 1
    assert "LeaseLost: output" in errors
    assert "`retake run` r2 on" in errors
    assert holder_of(output) is None


def test_a_full_disk_costs_no_lease(folder: Folder, quick: None) -> None:
    program = f"""{HOLDS}
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        output.write("more", b"1")
    except OSError as error:
        print(error.trouble.code, flush=True)
    until = time.monotonic() + 1.5 * leases.STALE_S
    while time.monotonic() < until:
        lease.check()
        assert lease.sure
        time.sleep(0.1)
"""
    process = started(program, folder)
    assert process.stdout
    assert process.stdout.readline() == "disk_full\n"
    waits = threading.Event()

    def on_wait(text: str) -> None:
        assert "seems to be gone" not in text
        waits.set()

    with held(folder, "r2", wait=True, on_wait=on_wait) as lease:
        assert waits.is_set()
        assert "has ended without a word" in lease.notes[0]  # to release it needs a little space
    assert process.wait(20) == 0, process.communicate()


def test_storage_that_is_away_makes_a_holder_unsure_and_no_more(
    folder: Folder, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "CHECK_S", 0.2)
    with held(folder, "r1") as lease:
        with monkeypatch.context() as away:

            def fail(*_: Any) -> None:
                raise ConnectionError("storage is away")

            away.setattr(leases, "_numbers", fail)
            while lease.sure:
                lease.check()
            lease.check()  # it does not know, and waits a moment
            assert not lease.sure
        lease.check()
        until_sure(lease)


@pytest.mark.s3
@pytest.mark.parametrize("fault", [Fault.NO_CONTINUE, Fault.UNREAD])
def test_a_renewal_that_hangs_ends_and_the_holder_is_sure_again(
    s3: dict[str, str], quick: None, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(leases, "UNSURE_S", 0.3)
    with faulty(s3) as (proxy, access):
        for name, value in access.items():
            monkeypatch.setenv(name, value)
        with held(Folder(f"s3://bucket/{uuid.uuid4().hex}"), "r1") as lease:
            monkeypatch.setenv("RETAKE_STORAGE_TIMEOUT_S", "0.5")
            proxy.next(fault, method="PUT")
            while lease.sure:
                os.sched_yield()
            until_sure(lease)
            assert fault in [got for _, got in proxy.seen]


def test_a_holder_whose_renewal_hangs_notices_who_took_over(
    folder: Folder, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "CHECK_S", 0.05)
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(**_: Any) -> None:
        hangs.set()
        goes_on.wait(20)

    with pytest.raises(LeaseLost, match="r0 on node-7"), held(folder, "r1") as lease:
        monkeypatch.setattr(lease, "_renew", hang)
        assert hangs.wait(20)
        left_by(folder)
        try:
            while True:
                lease.check()
        finally:
            goes_on.set()


@pytest.mark.parametrize("taken", [False, True], ids=["ours", "taken over"])
def test_before_it_harms_another_run_a_holder_waits_until_it_is_known(
    folder: Folder, quick: None, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    monkeypatch.setattr(leases, "CHECK_S", 0.1)
    hangs, answers, numbers = threading.Event(), threading.Event(), leases._numbers

    def hang(output: Folder) -> list[int]:
        """One request hangs for longer than a lease lasts; others are answered."""
        if threading.current_thread().name == "lease":
            hangs.set()
            assert answers.wait(20)
        return numbers(output)

    with suppress(LeaseLost), held(folder, "r1") as lease:
        monkeypatch.setattr(leases, "_numbers", hang)
        assert hangs.wait(20)
        while lease.sure:
            lease.check()
        lease.check()  # it does not know, and goes on
        if taken:
            left_by(folder)
        known = threading.Event()

        def delete() -> None:
            with pytest.raises(LeaseLost) if taken else nullcontext():
                lease.check(sure=True)
            known.set()

        thread = threading.Thread(target=delete)
        thread.start()
        assert not known.wait(0.5)
        answers.set()
        assert known.wait(20)
        thread.join()


def test_a_holder_that_cannot_find_out_deletes_nothing(
    folder: Folder, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "SURE_S", 0.2)
    monkeypatch.setattr(leases, "CHECK_S", 1.0)
    with held(folder, "r1") as lease:
        with monkeypatch.context() as away:

            def fail(*_: Any) -> None:
                raise ConnectionError("storage is away")

            away.setattr(leases, "_numbers", fail)
            while lease.sure:
                lease.check()
            with pytest.raises(LeaseUnsure, match=r"for 0\.2 s its storage has not said"):
                lease.check(sure=True)
        lease.check(sure=True)


def test_a_lease_that_a_user_removes_is_written_again(folder: Folder, quick: None) -> None:
    with held(folder, "r1") as lease:
        folder.remove_folder("lease")
        while not folder.list("lease"):
            lease.check()
        until_sure(lease)
    assert holder_of(folder) is None


def until_sure(lease: leases.Lease) -> None:
    while not lease.sure:
        lease.check()


def test_a_higher_number_ends_a_run_that_did_not_notice(folder: Folder, quick: None) -> None:
    with pytest.raises(LeaseLost, match="r0 on node-7"), held(folder, "r1") as lease:
        left_by(folder)
        while lease.sure:
            os.sched_yield()


def test_runs_that_a_signal_ended_are_known_by_name(folder: Folder) -> None:
    with pytest.raises(KeyboardInterrupt), held(folder, "r1"):
        raise KeyboardInterrupt
    assert runs_stopped_by_signal(folder) == {"r1"}
    with held(folder, "r2"):
        pass
    process = started(f"{HOLDS}    lease.stopping(); time.sleep(60)".replace("r1", "r3"), folder)
    while b'"stopping": true' not in folder.read("lease/000003.json"):
        assert process.poll() is None
    process.kill()
    process.communicate()
    with held(folder, "r4") as lease:
        assert lease.runs_stopped == {"r1", "r3"}
        assert runs_stopped_by_signal(folder) == {"r1", "r3"}


@pytest.mark.parametrize(("other", "gone"), [
    ({}, False),
    ({"started": "1"}, True),
    ({"pid": 2**22 + 1}, True),
    ({"pid": 2**22 + 1, "host": "node-7"}, False),
    ({"pid": 2**22 + 1, "pid_space": "pid:[1]"}, False),
    ({"pid": 2**22 + 1, "boot": "another"}, False),
])  # fmt: skip
def test_only_a_process_of_this_machine_and_container_is_known_to_be_gone(
    other: dict[str, Any], gone: bool
) -> None:
    assert replace(Holder.this_process("r1", "retake run", ()), **other).is_gone() == gone


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "lease").write_text("a file")
    folder = Folder(str(tmp_path / "out"))
    with pytest.raises(CannotRun, match=f"output {folder.uri}: lease/"), held(folder, "r1"):
        pass
