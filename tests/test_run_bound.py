"""A run of the tests that does not end is ended, with the processes that it has started."""

import sys
from pathlib import Path

import psutil

from tests.run import run_bounded

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1)
open(sys.argv[1], "w").write(str(child.pid))
child.wait()
"""


def test_a_run_that_does_not_end_leaves_no_process(tmp_path: Path) -> None:
    place = tmp_path / "pid"
    command = [sys.executable, "-c", PARENT, str(place)]
    assert run_bounded(command, 3.0) == 1
    child = int(place.read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_the_exit_status_is_that_of_the_command() -> None:
    assert run_bounded([sys.executable, "-c", "raise SystemExit(5)"]) == 5
