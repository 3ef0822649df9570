"""What a job runs first on the head: what is missing there is said before any import of torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.submission import entry
from pipeline import __version__

ROOT = Path(__file__).parents[3]


def run(folder: Path, *arguments: str, flags: tuple[str, ...] = ()) -> tuple[int, str]:
    """The exit status and output of the entry on a head whose packages are in a folder."""
    done = subprocess.run(
        [sys.executable, *flags, "-m", "cluster.submission.entry", *arguments],
        check=False,
        cwd=folder,
        env={"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def requires(folder: Path, *wanted: str) -> None:
    about = folder / "retake-9.dist-info"
    about.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: retake", "Version: 9"]
    lines += [f"Requires-Dist: {one}" for one in wanted]
    (about / "METADATA").write_text("\n".join(lines) + "\n")


def test_a_head_that_has_everything_runs_the_command(tmp_path: Path) -> None:
    requires(tmp_path, "typer>=0.1", "nowhere; sys_platform == 'plan9'", "none; extra == 's3'")
    status, printed = run(tmp_path, "--version")
    assert (status, printed.split(",")[0]) == (0, f"retake {__version__}")


def test_a_head_that_lacks_packages_names_all_of_them_and_the_ways_out(tmp_path: Path) -> None:
    requires(tmp_path, "typer>=0.1", "no-such-package>=2", "pyyaml>=99")
    status, printed = run(tmp_path, "run", "job.yaml")
    assert status == 1
    assert printed.startswith("error: the head of the cluster (")
    assert "lacks no-such-package>=2, pyyaml>=99 (it has " in printed
    assert "--bring-packages" in printed
    assert "Traceback" not in printed


def test_a_python_that_is_not_rays_is_told(tmp_path: Path) -> None:
    status, printed = run(tmp_path, "run", "job.yaml", flags=("-S",))
    assert status == 1
    assert "is not that of Ray: it has none of its packages" in printed


def test_variables_that_travelled_are_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RETAKE_TRAVELLED", raising=False)
    entry.set_variables()
    assert "RETAKE_TRAVELLED" not in os.environ
    (tmp_path / entry.VALUES).write_text(json.dumps({"RETAKE_TRAVELLED": "x"}))
    monkeypatch.setenv("RETAKE_TRAVELLED", "here")  # so that it is put back
    entry.set_variables()
    assert os.environ["RETAKE_TRAVELLED"] == "x"
