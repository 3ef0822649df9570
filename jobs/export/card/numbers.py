"""What an export's card says in numbers: counts, scores with their histograms, and the rules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cluster.accept import NO_SCORE, NOT_MEASURED, Rules, WrongRule
from cluster.results.schema import SCHEMA
from jobs.accept.remembered import rules_in
from jobs.errors import counted
from jobs.export.formats import SPLITS
from jobs.export.values import leaves

if TYPE_CHECKING:
    from jobs.export.formats import Whole

BARS = "▁▂▃▄▅▆▇█"
BINS = 12
MEASURED = ("metrics", "scores")
"""The columns of the results with numbers that were measured."""


@dataclass(frozen=True)
class Counts:
    """How many pairs there are.

    Args:
        splits: pairs and videos of each.
        clips: pairs by height, width and frames, most first.
    """

    pairs: int
    sources: int
    masks: int
    instructions: int
    splits: dict[str, tuple[int, int]]
    clips: list[tuple[Any, ...]]

    def as_text(self) -> str:
        lines = ["## What is in it", "", "| Split | Pairs | Videos |", "|---|---|---|"]
        lines += [
            f"| {name} | {pairs} | {videos} |" for name, (pairs, videos) in self.splits.items()
        ]
        lines += ["", "All edits of a video are in the same split."]
        if self.clips:
            lines += [
                "",
                "| Height | Width | Frames | Frames a second | Pairs |",
                "|---|---|---|---|---|",
            ]
            lines += [f"| {' | '.join(map(_shown, row))} |" for row in self.clips]
        if self.masks or self.instructions:
            lines += [
                "",
                f"{counted(self.masks, 'pair')} with a mask, {self.instructions} with an ",
            ]
            lines[-1] += "instruction."
        return "\n".join(lines)


def counts(whole: Whole) -> Counts:
    """Of what was exported."""
    ask = whole.database.execute
    ((pairs, sources, masks, instructions),) = ask(
        "SELECT count(*), count(DISTINCT video_id), count(mask), "
        "count(*) FILTER (WHERE instruction != '') FROM exported"
    ).fetchall()
    found = ask(
        "SELECT _split, count(*), count(DISTINCT video_id) FROM exported GROUP BY ALL"
    ).fetchall()
    by_split = {split: (some, videos) for split, some, videos in found}
    clips = ask(
        "SELECT height, width, frames, fps, count(*) AS n FROM exported GROUP BY ALL "
        "ORDER BY n DESC, height, width, frames, fps LIMIT 10"
    ).fetchall()
    splits = {name: by_split.get(name, (0, 0)) for name in SPLITS}
    return Counts(pairs, sources, masks, instructions, splits, clips)


def scores(whole: Whole) -> str:
    """A table of every number that was measured of the pairs; "" where there is none."""
    rows = []
    for name, asked in _numbers():
        finite = f"isfinite({asked}::DOUBLE)"
        ((count, low, first, middle, last, high),) = whole.database.execute(
            f"SELECT count(x), min(x), quantile_cont(x, 0.1), quantile_cont(x, 0.5), "
            f"quantile_cont(x, 0.9), max(x) "
            f"FROM (SELECT {asked}::DOUBLE AS x FROM exported WHERE {finite})"
        ).fetchall()
        if count:
            bars = _histogram(whole, asked, low, high)
            cells = [count, low, first, middle, last, high]
            rows.append(f"| `{name}` | {' | '.join(map(_shown, cells))} | {bars} |")
    if not rows:
        return ""
    return "\n".join(
        [
            "## Scores",
            "",
            f"Of all pairs; the histogram has {BINS} equal steps from the lowest to the highest.",
            "",
            "| Column | Pairs | Lowest | 10% | Median | 90% | Highest | Histogram |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def _numbers() -> Iterator[tuple[str, str]]:
    """The columns with measured numbers, by their dotted names, and what asks for each in SQL."""
    for column in MEASURED:
        for name, asked in leaves(column, column, SCHEMA.field(column).type):
            kind: pa.DataType = SCHEMA.field(column).type
            for part in name.split(".")[1:]:
                kind = kind.field(part).type
            if pa.types.is_floating(kind) or pa.types.is_integer(kind):
                yield name, asked


def _histogram(whole: Whole, asked: str, low: float, high: float) -> str:
    width = high - low
    place = f"least({BINS - 1}, floor(({asked} - ?) / ? * {BINS}))::INTEGER" if width else "0"
    parameters = [low, width] if width else []
    found = whole.database.execute(
        f"SELECT {place} AS bin, count(*) FROM exported WHERE isfinite({asked}::DOUBLE) GROUP BY 1",
        parameters,
    ).fetchall()
    by_bin = dict(found)
    most = max(by_bin.values())
    return "".join(
        BARS[-(-by_bin[at] * (len(BARS) - 1) // most)] if at in by_bin else "·"
        for at in range(BINS if width else 1)
    )


def acceptance(whole: Whole) -> str:
    """What the job's rules say of all its edits; "" where they say nothing."""
    ask = whole.database.execute
    ((done, accepted, rejected),) = ask(
        "SELECT count(*), count(*) FILTER (WHERE accepted), count(*) FILTER (WHERE NOT accepted) "
        "FROM done"
    ).fetchall()
    if not accepted + rejected:
        return ""
    found = ask(
        "SELECT why, count(*) AS n FROM (SELECT unnest(rejected_for) AS why FROM done "
        "WHERE NOT accepted) GROUP BY why ORDER BY n DESC, why"
    ).fetchall()
    rules = {rule: [0, 0] for rule in _rules(whole)}
    for why, count in found:
        end = next((end for end in (NOT_MEASURED, NO_SCORE) if why.endswith(end)), "")
        numbers = rules.setdefault(why.removesuffix(end), [0, 0])
        numbers[bool(end)] += count
    lines = [
        "## Which edits were accepted",
        "",
        f"Of {counted(done, 'edit')} that the job made, its rules accepted {accepted} and rejected "
        f"{rejected}. One edit may be rejected by several.",
    ]
    if rules:
        lines += [
            "",
            "| Rule | Rejected by its number | Rejected without a number |",
            "|---|---|---|",
        ]
        lines += [f"| `{rule}` | {by} | {without} |" for rule, (by, without) in rules.items()]
    return "\n".join(lines)


def _rules(whole: Whole) -> Iterator[str]:
    """The rules that decided, as `rejected_for` writes them; also those that reject nothing."""
    for text in rules_in(whole.output):
        with suppress(WrongRule):  # of another version; the rest is shown
            yield from (rule.text for rule in Rules.parse([text], more=whole.columns).rules)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
