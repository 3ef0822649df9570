"""`retake run` as a process of its own, and what it wrote to its log."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.scene.dataset import Dataset
from tests.run import python_path

ROOT = Path(__file__).parents[3]


@dataclass
class Run:
    """A driver at work.

    Args:
        log: where its messages go.
    """

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def status(self) -> int | None:
        """Its exit status; minus the signal that ended it."""
        return self.process.poll()

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def ends_with(self, status: int, within_s: float = 240.0) -> None:
        """Wait for its end, which is to be with this exit status."""
        assert self.process.wait(within_s) == status, self.text

    def says(self, text: str, within_s: float = 120.0) -> None:
        """Wait until it has said something."""
        until = time.monotonic() + within_s
        while text not in self.text:
            assert not self.ended and time.monotonic() < until, self.text
            time.sleep(0.05)

    def last_lines(self, count: int = 12) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])


def environment(folder: Path, mark: str, **more: str) -> dict[str, str]:
    """The environment of everything that a run starts.

    Args:
        folder: a short path; temporary files go to `tmp` in it, Ray's to `ray`.
        mark: `NAME=value`, by which its processes are found.
    """
    for name in ("tmp", "ray"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    name, value = mark.split("=", 1)
    kept = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return {
        **kept,
        "PYTHONPATH": python_path(ROOT),
        "TMPDIR": str(folder / "tmp"),
        "RAY_TMPDIR": str(folder / "ray"),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "COLUMNS": "200",
        "RETAKE_STORAGE_PATIENCE_S": "60",
        "RETAKE_STORAGE_TIMEOUT_S": "10",
        name: value,
        **more,
    }


def start_run(dataset: Dataset, log: Path, environment: dict[str, str], *options: str) -> Run:
    """Start `retake run`; its messages are added to the log."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", "run", str(dataset.job), *options],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return Run(process, log)
