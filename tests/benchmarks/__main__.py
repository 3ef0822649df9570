"""`make bench`: every benchmark, one after the other; one JSON file and one table.

    python -m tests.benchmarks [--only NAME ...] [--quick] [--to FOLDER]
    python -m tests.benchmarks --tables

Writes `bench.json` and `bench.md` to `results/` beside this file, after each benchmark. With
`--only` those that did not run stay as they are in there. With `--quick` sizes are so small that no
time means anything; it shows that everything runs, and writes nothing unless `--to` names a folder.
`--tables` measures nothing: it writes the tables of `bench.json` into the pages that show them.

Exits with 1 where a figure misses its target or a benchmark fails.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.figures import as_table, say
from tests.benchmarks.pages import RESULTS, fill_pages, markdown
from tests.benchmarks.programs import BENCHMARKS, SEPARATE, Program
from tests.benchmarks.record import Record, read, write

PATIENCE = 4
"""A benchmark is ended after so many times the minutes that it takes."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    if given.tables:
        fill_pages()
        return 0
    folder = given.to or (None if given.quick else RESULTS)
    chosen = [one for one in BENCHMARKS if not given.only or one.name in given.only]
    records = measured(chosen, given.quick, lambda found: store(found, folder))
    say("separate, for they take long or another machine:")
    for program in SEPARATE:
        say(f"  python -m {program.module}  (about {program.minutes:g} minutes)")
    missed = [f"{r.name}: {f.name}" for r in records for f in r.measured.missed]
    failed = [f"{r.name}: {r.error}" for r in records if r.error]
    for line in (*(f"missed: {m}" for m in missed), *(f"failed: {f}" for f in failed)):
        say(line)
    return int(bool(missed or failed))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [program.name for program in BENCHMARKS]
    made.add_argument("--only", nargs="+", choices=names, default=[], metavar="NAME",
                      help=", ".join(names))  # fmt: skip
    made.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    made.add_argument("--to", type=Path, metavar="FOLDER", help="where the two files go")
    made.add_argument("--tables", action="store_true", help="write the tables into the pages")
    return made


def measured(
    programs: Sequence[Program], quick: bool, keep: Callable[[Record], None]
) -> list[Record]:
    """Run benchmarks, one after the other; each record is kept as it comes."""
    records = []
    for program in programs:
        say(f"== {program.name}: about {program.minutes:g} minutes")
        record = run(program, quick)
        say(f"{record.name}: {record.seconds:.0f} s\n{as_table(record.measured.figures)}")
        keep(record)
        records.append(record)
    return records


def run(program: Program, quick: bool) -> Record:
    """Run one benchmark in a process of its own; what it prints to stderr passes through."""
    command = [sys.executable, "-m", program.module, *(["--quick"] if quick else [])]
    record, began = Record.started(program.name, program.module, quick), time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            printed = process.communicate(timeout=PATIENCE * 60 * program.minutes)[0]
        except BaseException as error:
            # Ranks and Ray, which a benchmark may have started, are in its group of processes.
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return replace(record, error=f"not over after {error.timeout:.0f} s")
    record = replace(record, seconds=time.monotonic() - began)
    try:
        return record.with_measured(json.loads(printed))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = f"printed no figures ({type(error).__name__}), exit status {process.returncode}"
        return replace(record, error=why)


def store(record: Record, folder: Path | None) -> None:
    """Put a record into the two files of a folder, beside those of other benchmarks."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    records = {r.name: r for r in read(folder / "bench.json")} | {record.name: record}
    known = [records[one.name] for one in BENCHMARKS if one.name in records]
    write(folder / "bench.json", known)
    (folder / "bench.md").write_text(markdown(known), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
