"""The first line comes at once, and a signal ends a command in order, whatever it is doing."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs import stopping
from jobs.cli import app

GRACE_S = 2
DEMO = [sys.executable, "-m", "jobs.cli", "demo", "--set", "inversion.steps=100"]
DEMO += ["--set", "cluster.reconstruction.groups=1"]
DEMO += ["--set", f"cluster.stop_grace_s={GRACE_S}", "--output"]
STOPPED = "stopped; run the same command again to go on\n"
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.fixture(autouse=True)
def what_a_signal_leaves() -> Iterator[None]:
    """A process that got one is about to end; this one is not."""
    numbers = stopping.SIGNALS
    handlers, hook = {number: signal.getsignal(number) for number in numbers}, sys.unraisablehook
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    sys.unraisablehook = hook


@pytest.mark.parametrize("command", [["demo", "--output"], ["run"]])
def test_the_first_line_comes_before_torch_and_ray_are_imported(
    tmp_path: Path, command: list[str]
) -> None:
    program = (
        "import os, sys; from jobs.cli import app\n"
        "slow = {'torch', 'ray', 'diffusers', 'transformers', 'pyarrow'}\n"
        "class First:\n"
        "    def flush(self): pass\n"
        "    def write(self, text):\n"
        "        os.write(1, f'{text} {slow & set(sys.modules)}'.encode()); os._exit(0)\n"
        "sys.stdout = First(); app(sys.argv[1:])"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, *command, str(tmp_path / "x")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path / "x") in done.stdout
    assert done.stdout.endswith(" set()"), done.stdout
    assert time.monotonic() - started < 10  # it takes 0.2 s where nothing else runs


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_signal_ends_a_command_with_its_status_and_one_line(
    monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    monkeypatch.setattr("jobs.report.write_report", lambda *_: signal.raise_signal(number))
    result = CliRunner().invoke(app, ["report", "out"])
    assert result.exit_code == status
    assert result.output == STOPPED


STARTS_A_CHILD = """
import signal, subprocess, sys, threading, time
from jobs.stopping import AGAIN_S, drains, stops_by_signal
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
"""


def result_of(program: str) -> tuple[str, str, int]:
    """What a program and its children print and complain of, and its exit status."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30
    )
    return done.stdout, done.stderr, done.returncode


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_second_signal_ends_the_process_and_its_children_even_in_native_code(
    number: int, status: int
) -> None:
    program = f"""{STARTS_A_CHILD}
def signals():
    signal.raise_signal({int(number)})
    time.sleep(AGAIN_S + 0.1)
    signal.raise_signal({int(number)})
with stops_by_signal():
    try:
        threading.Thread(target=signals).start()
        time.sleep(30)
    except KeyboardInterrupt:
        lock = threading.Lock()
        with lock:
            lock.acquire()  # for ever
"""
    assert result_of(program) == ("", f"{stopping.ENDED}\n", status)


@pytest.mark.parametrize("begin", ["", "region.begin()"])
def test_a_command_that_does_not_end_after_a_signal_is_ended(begin: str) -> None:
    program = f"""{STARTS_A_CHILD}
from jobs import stopping
stopping.END_S = 0.1
with stops_by_signal():
    try:
        with drains(0) as region:
            {begin}
            signal.raise_signal(signal.SIGTERM)
    finally:
        time.sleep(30)
"""
    out, errors, status = result_of(program)
    assert (out, status) == ("", 143)
    assert errors.endswith(STOPPED)


def test_a_signal_that_is_sent_twice_at_once_is_one() -> None:
    program = f"""{STARTS_A_CHILD}
with stops_by_signal() as stop, drains(3) as region:
    region.begin()
    signal.raise_signal(signal.SIGINT), signal.raise_signal(signal.SIGTERM)
    print(region.stop.wait(20), time.sleep(AGAIN_S / 2), stop.status)
    child.kill()
"""
    out, errors, status = result_of(program)
    assert out == "True None 130\n"
    assert errors.startswith(stopping.DRAINING.format(grace_s=3) + "\n")
    assert "Stopped" in errors  # at the end of the block
    assert status != 0


def test_in_a_block_that_drains_a_signal_raises_at_its_end_only() -> None:
    noted = threading.Event()
    with stopping.stops_by_signal() as stop:
        with pytest.raises(stopping.Stopped), stopping.drains(5, noted.set) as region:
            region.begin()
            assert not region.stop.is_set()
            signal.raise_signal(signal.SIGTERM)
            assert region.stop.wait(20)
            assert noted.wait(20)
    assert stop.status == 143


def test_a_block_that_drains_needs_no_signals_around_it() -> None:
    with stopping.drains(5) as region:
        region.begin()
    assert not region.stop.is_set()


def test_before_a_block_begins_to_drain_a_signal_raises_at_once() -> None:
    reached = []
    with (
        stopping.stops_by_signal(),
        pytest.raises(stopping.Stopped),
        stopping.drains(5) as region,
    ):
        signal.raise_signal(signal.SIGTERM)
        reached.append(region)
    assert not reached


def test_a_fork_that_gets_a_signal_does_not_stop_its_parent() -> None:
    program = f"""{STARTS_A_CHILD}
import os
with stops_by_signal() as stop:
    pid = os.fork()
    if not pid:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            os._exit(5)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), stop.first)
child.kill()
"""
    assert result_of(program) == ("5 None\n", "", 0)


def test_a_signal_that_python_would_lose_ends_the_process_too() -> None:
    program = (
        "import signal; from jobs.stopping import stops_by_signal\n"
        "class Destructor:\n"
        "    def __del__(self): signal.raise_signal(signal.SIGINT)\n"
        "with stops_by_signal():\n"
        "    Destructor()\n"
        "    print('it went on')"
    )
    assert result_of(program) == ("", STOPPED, 130)


def test_a_command_that_ends_by_itself_leaves_the_handlers_that_were_there() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), stopping.stops_by_signal():
        assert signal.getsignal(signal.SIGINT) != before[0]
        raise ZeroDivisionError
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.ray
@pytest.mark.parametrize(("phase", "number", "status", "message"), [
    ("starting Ray", *SIGNALS[1], STOPPED),
    ("editing", *SIGNALS[0], f"{stopping.DRAINING.format(grace_s=GRACE_S)}\n{STOPPED}"),
], ids=["starting", "editing"])  # fmt: skip
def test_a_run_that_is_stopped_says_so_and_leaves_no_process(
    tmp_path: Path, phase: str, number: int, status: int, message: str
) -> None:
    mark = f"RETAKE_TEST={tmp_path}"
    process = subprocess.Popen(
        [*DEMO, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        | dict([mark.split("=", 1)]),
    )
    assert process.stdout is not None
    assert any(line.startswith(phase) for line in process.stdout)
    os.killpg(process.pid, number)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert (errors, process.returncode) == (message, status)
    until = time.monotonic() + 60  # a process of Ray's that is only just starting ends when it has
    while left := processes_with(mark):
        assert time.monotonic() < until, left
        os.sched_yield()


def processes_with(mark: str) -> list[str]:
    """The processes that have inherited a variable of the environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found
