"""`make test`: pytest with line coverage of every process that it starts, and the bound on it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

LEAST_PERCENT = 85
MOST_S = 3000.0
"""The tests take about ten minutes on two cores; what takes so long does not end."""
MOST_WORKERS = 4
"""Each may hold a Ray cluster, with some GB of memory."""
MEASURED = Path(__file__).parent / "measured"
"""Its `sitecustomize.py` makes coverage cheap, in each process that Python starts."""


def main() -> int:
    coverage = [sys.executable, "-m", "coverage"]
    subprocess.run([*coverage, "erase"], check=True)
    # A file's tests share what is slow to make. Files come in the order of `tests.conftest`.
    # One more than cores: a test that waits for a process leaves its core to another.
    workers = min((os.cpu_count() or 1) + 1, MOST_WORKERS)
    at_once = ["-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]
    at_once += ["--max-worker-restart", "1"]  # what ended a process ends the next one, too
    command = [*coverage, "run", "-m", "pytest", *at_once, *sys.argv[1:]]
    os.environ["PYTHONPATH"] = python_path(MEASURED)
    status = run_bounded(command)
    subprocess.run([*coverage, "combine", "-q"], check=False)
    report = subprocess.run([*coverage, "report", f"--fail-under={LEAST_PERCENT}"], check=False)
    return status or report.returncode


def python_path(first: Path) -> str:
    """PYTHONPATH with a folder before those that this process was given."""
    return os.pathsep.join([str(first), *filter(None, [os.environ.get("PYTHONPATH")])])


def run_bounded(command: Sequence[str], most_s: float = MOST_S) -> int:
    """The exit status of a command; one that is late is ended with all its children."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait(most_s)
        except subprocess.TimeoutExpired:
            print(f"the tests did not end in {most_s:g} s", file=sys.stderr)
            children = psutil.Process(process.pid).children(recursive=True)
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            process.kill()
            psutil.wait_procs(children, timeout=30)  # on a busy machine they take their time
            return 1


if __name__ == "__main__":
    sys.exit(main())
