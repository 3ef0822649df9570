"""The first line comes at once, and a signal ends a command in order, whatever it is doing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs import stopping
from jobs.cli import app

DEMO = [sys.executable, "-m", "jobs.cli", "demo", "--set", "inversion.steps=100", "--output"]
STOPPED = "stopped; run the same command again to go on\n"
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.fixture(autouse=True)
def what_a_signal_leaves() -> Iterator[None]:
    """A process that got one is about to end; this one is not."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers, hook = {number: signal.getsignal(number) for number in numbers}, sys.unraisablehook
    yield
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


def test_a_second_signal_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(BaseException):
        pass

    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(stopping.os, "_exit", end)
    with stopping.stops_by_signal() as stop:
        with pytest.raises(stopping.Stopped):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Ended, match="143"):
            signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Ended, match="130"):  # on the way out too
        signal.raise_signal(signal.SIGINT)
    assert stop.status == 130


def test_a_signal_that_python_would_lose_ends_the_process_too() -> None:
    program = (
        "import signal; from jobs.stopping import stops_by_signal\n"
        "class Destructor:\n"
        "    def __del__(self): signal.raise_signal(signal.SIGINT)\n"
        "with stops_by_signal():\n"
        "    Destructor()\n"
        "    print('it went on')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", STOPPED, 130)


def test_a_command_that_ends_by_itself_leaves_the_handlers_that_were_there() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), stopping.stops_by_signal():
        assert signal.getsignal(signal.SIGINT) != before[0]
        raise ZeroDivisionError
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.ray
@pytest.mark.parametrize(("phase", "number", "status"), [
    ("starting Ray", *SIGNALS[1]),
    ("editing", *SIGNALS[0]),
])  # fmt: skip
def test_a_run_that_is_stopped_says_so_and_leaves_no_process(
    tmp_path: Path, phase: str, number: int, status: int
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
    assert (errors, process.returncode) == (STOPPED, status)
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
