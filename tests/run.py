"""`make test`: pytest with line coverage of every process that it starts, and the bound on it."""

import subprocess
import sys

LEAST_PERCENT = 85


def main() -> int:
    coverage = [sys.executable, "-m", "coverage"]
    subprocess.run([*coverage, "erase"], check=True)
    tests = subprocess.run([*coverage, "run", "-m", "pytest", *sys.argv[1:]], check=False)
    subprocess.run([*coverage, "combine", "-q"], check=False)
    report = subprocess.run([*coverage, "report", f"--fail-under={LEAST_PERCENT}"], check=False)
    return tests.returncode or report.returncode


if __name__ == "__main__":
    sys.exit(main())
