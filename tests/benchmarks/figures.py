"""What a benchmark gives: named figures with their targets, and how it prints them.

A benchmark is a program of this folder that `make bench` runs. It prints one JSON object on its
standard output, and whatever else it says on its standard error. It exits with 1 where a figure
misses its target. A program is this, and an entry in `BENCHMARKS` of `programs.py`:

    def measure(given: Namespace) -> Measured:
        return Measured([Figure("4 edits", 1.62, "x", "ratio", at_least=1.5)])

    if __name__ == "__main__":
        run(measure, __doc__)

Nothing here imports more than Python's own modules.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NoReturn

Basis = Literal["ratio", "counted", "timed", "measured"]
"""How a figure came about. `ratio`: of two things timed side by side in one run. `counted`: it does
not depend on the machine. `timed`: seconds of this machine, which mean little on another one.
`measured`: anything else that was measured, such as dB or bytes."""


@dataclass(frozen=True)
class Figure:
    """One number that a benchmark found.

    Args:
        name: of the figure; another one for each figure of a program.
        value: as found, not rounded.
        unit: `x`, `s`, `dB`, `forwards`, `rows/s`.
        basis: how it came about.
        at_least, at_most: the target, at most one of the two; None where there is none.
        note: what a reader needs beside the name.
    """

    name: str
    value: float
    unit: str
    basis: Basis
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most

    @property
    def target(self) -> str:
        """The target in words, such as `≥ 1.5`."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"


@dataclass(frozen=True)
class Measured:
    """All that a benchmark found.

    Args:
        figures: in the order of the table.
        tables: Markdown that shows more, by a name in small letters; pages name them to show them.
    """

    figures: Sequence[Figure]
    tables: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As `from_json` reads it; each figure has its target in words, and `met`, beside it."""
        return {
            "figures": {
                f.name: {**_without_name(f), "target": f.target, "met": f.met} for f in self.figures
            },
            "tables": dict(self.tables),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Measured:
        """What `to_json` made."""
        own = ("value", "unit", "basis", "at_least", "at_most", "note")
        figures = [
            Figure(name, **{key: value for key, value in found.items() if key in own})
            for name, found in record["figures"].items()
        ]
        return cls(figures, record["tables"])

    @property
    def missed(self) -> list[Figure]:
        """The figures that miss their targets."""
        return [figure for figure in self.figures if figure.met is False]


def run(
    measure: Callable[[Namespace], Measured],
    doc: str | None,
    parser: ArgumentParser | None = None,
) -> NoReturn:
    """The program of a benchmark: read the command line, measure, print, exit.

    With `--quick` sizes are so small that only what is counted keeps its target.

    Args:
        measure: does the work. It gets the command line, with `quick` and what `parser` adds.
        doc: the module's docstring, for `--help`.
        parser: with more options than `--quick`.
    """
    parser = parser or ArgumentParser()
    parser.description, parser.formatter_class = doc, RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    given = parser.parse_args()
    found = measure(given)
    if given.quick:
        found = replace(found, figures=[without_time(figure) for figure in found.figures])
    emit(found)
    sys.exit(bool(found.missed))


def emit(found: Measured) -> None:
    """Print what was found: JSON for programs, on a terminal a table beside it for people."""
    if sys.stdout.isatty():
        say("\n" + as_table(found.figures))
    print(json.dumps(found.to_json(), indent=1, ensure_ascii=False), flush=True)


def without_time(figure: Figure) -> Figure:
    """A figure without a target, unless it is counted."""
    return figure if figure.basis == "counted" else replace(figure, at_least=None, at_most=None)


def as_table(figures: Sequence[Figure]) -> str:
    """Figures as a Markdown table."""
    lines = ["| figure | value | target | met | basis |", "|---|---|---|---|---|"]
    for f in figures:
        name = f"{f.name} ({f.note})" if f.note else f.name
        met = {True: "yes", False: "**no**", None: ""}[f.met]
        lines.append(f"| {name} | {shown(f.value, f.unit)} | {f.target} | {met} | {f.basis} |")
    return "\n".join(lines) + "\n"


def shown(value: float, unit: str) -> str:
    """A value with its unit, in three digits or more: `1.55x`, `12.3 s`, `1,000,000 rows`."""
    if float(value).is_integer() and abs(value) >= 1 and unit != "x":
        number = f"{value:,.0f}"
    elif abs(value) >= 1000:
        number = f"{value:,.0f}"
    elif abs(value) >= 100:
        number = f"{value:.0f}"
    else:
        number = f"{value:.3g}" if unit != "x" or abs(value) >= 10 else f"{value:.2f}"
    return number + (unit if unit in ("x", "%") else f" {unit}" if unit else "")


def say(text: str) -> None:
    """Tell a person what goes on; the JSON object on the standard output stays alone."""
    print(text, file=sys.stderr, flush=True)


def _without_name(figure: Figure) -> dict[str, Any]:
    return {key: value for key, value in asdict(figure).items() if key != "name"}
