"""What `bench.json` holds: one record for each benchmark, with where and when it ran."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline import __version__ as retake_version
from tests.benchmarks.figures import Measured

PACKAGES = ("torch", "diffusers", "transformers", "ray")
STATISTICS = Path("/proc/stat")
LOOKS, LOOK_S = 5, 0.05


@dataclass(frozen=True)
class Record:
    """One benchmark's run.

    Args:
        name: of the benchmark.
        command: that shows its figures.
        date: of the run.
        machine: processor, cores and memory.
        versions: of Retake, Python and packages.
        load: processes beside it that wanted to run when it began. On a quiet machine below 1;
            where it is not, times mean little.
        quick: whether sizes were so small that times mean nothing.
        seconds: that it took.
        measured: what it found.
        error: why it found nothing; empty where it did.
    """

    name: str
    command: str
    date: str
    machine: str
    versions: Mapping[str, str]
    load: float
    quick: bool = False
    seconds: float = 0.0
    measured: Measured = field(default_factory=lambda: Measured([]))
    error: str = ""

    @classmethod
    def started(cls, name: str, module: str, quick: bool) -> Record:
        """A record of a run that begins now."""
        command = f"python -m {module}{' --quick' if quick else ''}"
        today = date.today().isoformat()
        return cls(name, command, today, machine(), versions(), running(), quick)

    def with_measured(self, printed: Mapping[str, Any]) -> Record:
        """With the JSON object that the benchmark printed."""
        return replace(self, measured=Measured.from_json(printed))

    @property
    def when_and_where(self) -> str:
        """In a line: date, machine, versions."""
        names = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        busy = f", {self.load:g} processes running already" if self.load >= 1 else ""
        return f"{self.date}; {self.machine}{busy}; {names}"


def read(path: Path) -> list[Record]:
    """The records of a `bench.json`; none where there is no such file."""
    if not path.exists():
        return []
    records = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    return [
        Record(name=name, measured=Measured.from_json(content), **_own(content))
        for name, content in records.items()
    ]


def write(path: Path, records: Sequence[Record]) -> None:
    """Write a `bench.json`."""
    content = {r.name: {**_own(asdict(r)), **r.measured.to_json()} for r in records}
    text = json.dumps({"benchmarks": content}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _own(content: Mapping[str, Any]) -> dict[str, Any]:
    """What is of the record itself, and not of what it found."""
    others = ("name", "measured", "figures", "tables")
    return {key: value for key, value in content.items() if key not in others}


def machine() -> str:
    """Processor, cores and memory of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{processor()}, {os.cpu_count()} cores, {memory:.0f} GB"


def running() -> float:
    """Processes that want to run beside this one: the median of a few looks.

    No load average, which of a benchmark after another would count that one.
    """
    found = [0]
    for _ in range(LOOKS):
        time.sleep(LOOK_S)
        for line in STATISTICS.read_text().splitlines() if STATISTICS.exists() else ():
            if line.startswith("procs_running"):
                found.append(max(0, int(line.split()[1]) - 1))
    return statistics.median(found[1:] or found)


def processor() -> str:
    """The name that the processor gives itself; its architecture where it has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Retake, Python, and the packages that do the work."""
    found = {"retake": retake_version, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
