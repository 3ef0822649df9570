"""`make test`: pytest with line coverage of every process that it starts, and the bound on it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import psutil

LEAST_PERCENT = 85
MOST_S = 3000.0
"""The tests take a quarter of an hour on two cores; what takes so long does not end."""
MOST_WORKERS = 4
"""Each may hold a Ray cluster, with some GB of memory."""


def main() -> int:
    coverage = [sys.executable, "-m", "coverage"]
    subprocess.run([*coverage, "erase"], check=True)
    # A file's tests share what is slow to make. Files come in the order of `tests.conftest`.
    workers = min(os.cpu_count() or 1, MOST_WORKERS)
    at_once = ["-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]
    at_once += ["--max-worker-restart", "1"]  # what ended a process ends the next one, too
    command = [*coverage, "run", "-m", "pytest", *at_once, *sys.argv[1:]]
    status = run_bounded(command)
    subprocess.run([*coverage, "combine", "-q"], check=False)
    report = subprocess.run([*coverage, "report", f"--fail-under={LEAST_PERCENT}"], check=False)
    return status or report.returncode


def run_bounded(command: Sequence[str], most_s: float = MOST_S) -> int:
    """The exit status of a command; one that is late is ended with all its children."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait(most_s)
        except subprocess.TimeoutExpired:
            print(f"the tests did not end in {most_s:g} s", file=sys.stderr)
            for child in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            process.kill()
            return 1


if __name__ == "__main__":
    sys.exit(main())
