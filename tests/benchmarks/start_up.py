"""Where the start of the demo goes: seconds from the command to its first edit, by phase.

    python -m tests.benchmarks.start_up [--runs 3]

Each run is a `retake demo` of its own, watched from outside: its lines, its files and its processes
in /proc. The run whose first edit is the median is shown. Beside other work only the CPU seconds
mean something; the head of the table says how much there was. `--quick` is one run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from tests.benchmarks.figures import Figure, Measured, run, say

TARGET_S = 25.0
LOOK_S = 0.05
TICKS = os.sysconf("SC_CLK_TCK")
RANK = "cluster.ranks.process"
FIRST_EDIT = "the first edit is denoised, decoded, measured and written"
PHASES = (
    ("the driver imports, draws the clips and checks the job", "line:starting Ray"),
    ("Ray starts", "line:loading:"),
    ("Ray Data starts its workers, the first of them a rank", "rank"),
    ("ranks import and load beside each other; prompts are encoded", "prompts/*/*.safetensors"),
    ("the first video is inverted and certified", "trajectories/*/index.json"),
    (FIRST_EDIT, "edits/*/*.mp4"),
    ("five more edits, the report, Ray ends", "end"),
)
"""What goes on, and what shows that it is over: a line, a file in the output, or a process."""


@dataclass
class Run:
    """One run of the demo.

    Args:
        ends: when each phase was over, in seconds since the command.
        first, all: CPU seconds of each kind of process up to the first edit, and to the end.
        others: cores that other programs kept busy meanwhile.
    """

    ends: dict[str, float] = field(default_factory=dict)
    first: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    all: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    others: float = 0.0


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("--runs", type=int, help="3, or 1 with --quick")
    run(measure, __doc__, parser)


def measure(given: Namespace) -> Measured:
    runs = []
    for _ in range(given.runs or (1 if given.quick else 3)):
        runs.append(watched())
        say(f"the first edit after {first_edit(runs[-1]):.1f} s")
    median = sorted(runs, key=first_edit)[len(runs) // 2]
    return Measured(figures(median), {"start-up": table(median)})


def figures(run: Run) -> list[Figure]:
    """Of one run: the end of the first edit, and each phase."""
    computed = sum(seconds for _, seconds in run.first.values())
    note = f"{run.others:.1f} of {os.cpu_count()} cores busy with other work"
    whole = [
        Figure("command to first edit", first_edit(run), "s", "timed", at_most=TARGET_S, note=note),
        Figure("command to first edit, all processes", computed, "CPU s", "timed"),
    ]
    return whole + [Figure(f"phase: {name}", took, "s", "timed") for name, took in phases(run)]


def phases(run: Run) -> Iterator[tuple[str, float]]:
    """Each phase, and its seconds."""
    before = 0.0
    for phase, _ in PHASES:
        yield phase, run.ends[phase] - before
        before = run.ends[phase]


def first_edit(run: Run) -> float:
    return run.ends[FIRST_EDIT]


def table(run: Run) -> str:
    """Markdown."""
    lines = [
        f"{os.cpu_count()} cores, {run.others:.1f} of them busy with other work, {date.today()}.\n",
        "| phase | takes s | over at s |\n|---|---|---|",
    ]
    lines += [f"| {phase} | {took:.1f} | {run.ends[phase]:.1f} |" for phase, took in phases(run)]
    lines.append(
        "\n| processes | number | CPU s to the first edit | to the end |\n|---|---|---|---|"
    )
    for kind, (number, seconds) in sorted(run.all.items(), key=lambda item: -item[1][1]):
        until_first = run.first.get(kind, (0, 0.0))[1]
        lines.append(f"| {kind} | {number} | {until_first:.1f} | {seconds:.1f} |")
    whole = [sum(seconds for _, seconds in kinds.values()) for kinds in (run.first, run.all)]
    return "\n".join([*lines, f"| all | | {whole[0]:.1f} | {whole[1]:.1f} |\n"])


def watched() -> Run:
    """Run the demo and watch it."""
    with tempfile.TemporaryDirectory() as folder:
        run, seen = Run(), dict[int, tuple[str, float]]()
        busy, started = busy_seconds(), time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", "demo", "--output", folder],
            stdout=subprocess.PIPE,
            text=True,
        )
        said = list[tuple[float, str]]()

        def read() -> None:
            assert process.stdout
            for line in process.stdout:
                said.append((time.monotonic() - started, line))

        reader = threading.Thread(target=read)
        reader.start()
        while process.poll() is None:
            seen.update(processes(process.pid))
            now = time.monotonic() - started
            for phase, sign in PHASES:
                if phase not in run.ends and is_there(sign, folder, seen):
                    run.ends[phase] = now
                    if phase == FIRST_EDIT:
                        run.first = by_kind(seen)
            time.sleep(LOOK_S)
        reader.join()
        if process.returncode:
            raise SystemExit(f"the demo ended with {process.returncode}")
        for phase, sign in PHASES:
            words = sign.removeprefix("line:")
            if words != sign:
                run.ends[phase] = next(when for when, line in said if line.startswith(words))
        run.ends[PHASES[-1][0]] = lasted = time.monotonic() - started
        run.all = by_kind(seen)
        ours = sum(seconds for _, seconds in run.all.values())
        run.others = max(0.0, busy_seconds() - busy - ours) / lasted
        return run


def is_there(sign: str, folder: str, seen: Mapping[int, tuple[str, float]]) -> bool:
    """Whether what shows the end of a phase is there; lines are looked at afterwards."""
    if sign == "rank":
        return any(RANK in command for command, _ in seen.values())
    return "*" in sign and any(Path(folder, "output").glob(sign))


def processes(root: int) -> Iterator[tuple[int, tuple[str, float]]]:
    """The process with this id and all below it: id, command and CPU seconds so far."""
    parents, found = dict[int, int](), dict[int, tuple[str, float]]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:  # it has ended
                continue
            parents[int(entry.name)] = int(stat[1])
            found[int(entry.name)] = command, (int(stat[11]) + int(stat[12])) / TICKS
    for pid, one in found.items():
        above: int | None = pid
        while above is not None and above != root:
            above = parents.get(above)
        if above == root and one[0]:
            yield pid, one


def by_kind(seen: Mapping[int, tuple[str, float]]) -> dict[str, tuple[int, float]]:
    """The number of processes of each kind, and their CPU seconds."""
    kinds = dict[str, tuple[int, float]]()
    for command, seconds in seen.values():
        number, sum_s = kinds.get(kind := kind_of(command), (0, 0.0))
        kinds[kind] = number + 1, sum_s + seconds
    return kinds


def kind_of(command: str) -> str:
    if RANK in command:
        return "ranks"
    if "jobs.cli" in command:
        return "the driver"
    if command.startswith("ray::") and "Agent" not in command:
        return "Ray's workers: our stages, and what Ray Data has beside them"
    return "Ray's services"


def busy_seconds() -> float:
    """CPU seconds of all programs on this machine."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / TICKS


if __name__ == "__main__":
    main()
