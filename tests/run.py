"""`make test`: pytest with line coverage of every process that it starts, and the bound on it."""

import os
import subprocess
import sys

LEAST_PERCENT = 85
MOST_WORKERS = 4
"""Each may hold a Ray cluster, with some GB of memory."""


def main() -> int:
    coverage = [sys.executable, "-m", "coverage"]
    subprocess.run([*coverage, "erase"], check=True)
    # A file's tests share what is slow to make. Files come in the order of `tests.conftest`.
    workers = min(os.cpu_count() or 1, MOST_WORKERS)
    at_once = ["-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]
    command = [*coverage, "run", "-m", "pytest", *at_once, *sys.argv[1:]]
    tests = subprocess.run(command, check=False)
    subprocess.run([*coverage, "combine", "-q"], check=False)
    report = subprocess.run([*coverage, "report", f"--fail-under={LEAST_PERCENT}"], check=False)
    return tests.returncode or report.returncode


if __name__ == "__main__":
    sys.exit(main())
