"""A run of the tests that does not end is ended, and coverage looks at our packages alone."""

import json
import subprocess
import sys
from pathlib import Path

import psutil

from tests.run import MEASURED, run_bounded

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


def test_coverage_looks_away_while_another_package_is_imported_and_not_longer(
    tmp_path: Path,
) -> None:
    (tmp_path / "elsewhere.py").write_text("def called():\n    return 1\ncalled()\n")
    (tmp_path / "cluster.py").write_text("import elsewhere\nelsewhere.called()\n")
    (tmp_path / "main.py").write_text("def run():\n    import cluster\n    return 2\nrun()\n")
    coverage = [sys.executable, "-m", "coverage"]
    environment = {"PYTHONPATH": str(MEASURED), "COVERAGE_FILE": str(tmp_path / "data")}
    for command in (["run", "--source=.", "main.py"], ["json", "-o", "found.json"]):
        subprocess.run([*coverage, *command], cwd=tmp_path, env=environment, check=True)
    files = json.loads((tmp_path / "found.json").read_text())["files"]
    lines = {name: found["executed_lines"] for name, found in files.items()}
    assert lines == {"main.py": [1, 2, 3, 4], "cluster.py": [1, 2], "elsewhere.py": [2]}
