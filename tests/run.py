"""`make test`: pytest with line coverage of every process that it starts, and the bound on it."""

import os
import subprocess
import sys

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
    try:
        status = subprocess.run(command, check=False, timeout=MOST_S).returncode
    except subprocess.TimeoutExpired:
        print(f"the tests did not end in {MOST_S:g} s", file=sys.stderr)
        status = 1
    subprocess.run([*coverage, "combine", "-q"], check=False)
    report = subprocess.run([*coverage, "report", f"--fail-under={LEAST_PERCENT}"], check=False)
    return status or report.returncode


if __name__ == "__main__":
    sys.exit(main())
