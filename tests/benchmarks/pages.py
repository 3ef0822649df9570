"""What `bench.json` holds, as Markdown: `bench.md`, and the tables in the pages that show it.

A page holds `<!-- bench: WHAT -->` and `<!-- end -->`; `python -m tests.benchmarks --tables`
replaces what stands between them. WHAT is one of

- `targets`: every figure of every benchmark that has a target;
- `programs`: what `make bench` runs; `separate`: what it leaves out;
- `NAME`: all figures of a benchmark, with date and machine;
- `NAME.TABLE`: a table that the benchmark printed, with date and machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.benchmarks.figures import as_table, shown
from tests.benchmarks.programs import BENCHMARKS, SEPARATE, Program
from tests.benchmarks.record import Record, read

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
PAGES = ("README.md", "docs/benchmarks.md", "docs/masks.md", "docs/scores.md")
MARKED = re.compile(r"(<!-- bench: ([\w. -]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
NOT_YET = "Not measured yet: `{}` does it.\n"


class NoSuchTable(Exception):
    """A page asks for something that no benchmark has."""


def markdown(records: Sequence[Record]) -> str:
    """The text of `bench.md`."""
    parts = [
        "# What `make bench` found",
        "Written by `python -m tests.benchmarks`; `bench.json` beside it holds the same.",
    ]
    for record in records:
        parts += [f"## {record.name}", source(record)]
        if record.error:
            parts.append(f"**Failed: {record.error}.**")
        else:
            parts += [as_table(record.measured.figures).strip()]
        parts += [f"### {name}\n\n{text.strip()}" for name, text in record.measured.tables.items()]
    return "\n\n".join(parts) + "\n"


def source(record: Record) -> str:
    """How to show a record's figures again, and where and when they were found."""
    quick = " Small sizes: times mean nothing." if record.quick else ""
    return f"`{record.command}`, {record.seconds:.0f} s. {record.when_and_where}.{quick}"


def fill_pages() -> None:
    """Write the tables into all pages that have a place for them."""
    records = read(RESULTS / "bench.json")
    for name in PAGES:
        page = ROOT / name
        page.write_text(filled_in(page.read_text(encoding="utf-8"), records), encoding="utf-8")


def filled_in(page: str, records: Iterable[Record]) -> str:
    """A page with what stands between its markers made anew."""
    found = {record.name: record for record in records}

    def replaced(marked: re.Match[str]) -> str:
        made = _named(marked.group(2), found).strip()
        return f"{marked.group(1)}\n{made}\n\n{marked.group(3)}"

    return MARKED.sub(replaced, page)


def _named(what: str, records: dict[str, Record]) -> str:
    if what in ("programs", "separate"):
        return programs_table(BENCHMARKS if what == "programs" else SEPARATE)
    if what == "targets":
        return targets_table(records.values())
    name, _, table = what.partition(".")
    if name not in {program.name for program in BENCHMARKS}:
        raise NoSuchTable(f"there is no benchmark {name!r} for `<!-- bench: {what} -->`")
    if name not in records or records[name].error:
        return NOT_YET.format(f"python -m tests.benchmarks --only {name}")
    record = records[name]
    tables = record.measured.tables
    if table and table not in tables:
        raise NoSuchTable(f"{name} has no table {table!r}, but {', '.join(tables) or 'none'}")
    made = tables[table] if table else as_table(record.measured.figures)
    return f"{made.strip()}\n\n{source(record)}"


def programs_table(programs: Sequence[Program]) -> str:
    """What there is to run."""
    lines = ["| program | what it measures | minutes |", "|---|---|---|"]
    lines += [f"| `python -m {p.module}` | {p.what} | {p.minutes:g} |" for p in programs]
    return "\n".join(lines)


def targets_table(records: Iterable[Record]) -> str:
    """Every figure with a target, and the command that shows it."""
    lines = [
        "| figure | found | target | met | command | date |",
        "|---|---|---|---|---|---|",
    ]
    machines = set[str]()
    for record in records:
        for f in record.measured.figures:
            if f.met is not None:
                met = "yes" if f.met else "**no**"
                value = shown(f.value, f.unit)
                command, day = f"`{record.command}`", record.date
                lines.append(f"| {f.name} | {value} | {f.target} | {met} | {command} | {day} |")
                machines.add(record.machine)
    if not machines:
        return NOT_YET.format("make bench")
    return "\n".join([*lines, "", f"On {'; '.join(sorted(machines))}."])
