"""What a report shows of one run or of two: edits in order, their numbers and the job's sums."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import numpy as np

from cluster.results.damaged import Damaged
from cluster.results.schema import plain_rows
from jobs.accept.remembered import rules_in
from jobs.errors import JobError
from jobs.report.metrics import METRICS, Metric, describe, summarise
from jobs.report.read import (
    ONLY_THERE,
    Joined,
    Names,
    Run,
    as_json,
    choose,
    join,
    natural,
    read_rows,
    read_run,
)
from jobs.report.rows import Edit, make_card, shown
from jobs.report.scores import thresholds
from jobs.spec import read_resolved
from pipeline.storage import Folder

DIFFERENCE = "difference:"
ROOT = ".."  # the page stands in a folder of the output
EDITS_IN_A_FILE = 1000
COMMON_NAMES = {"out", "output", "outputs", "result", "results"}
"""A folder of such a name says nothing of its job, so its own folder is named too."""


@dataclass
class Gallery:
    """The edits of a report.

    Args:
        there: the other run, if one is compared.
        job: the resolved one of this run; empty where there is none.
        title, title_there: the names of both jobs.
        edits: all edits, and of them those that are shown.
        metrics: the numbers that edits have, in the page's order; differences last.
        rules: by which edits of this run were accepted.
    """

    names: Names
    here: Run
    there: Run | None
    job: Mapping[str, Any]
    title: str
    title_there: str
    edits: Joined
    shown: Joined
    metrics: list[Metric]
    rules: Sequence[str]

    @classmethod
    def read(
        cls, output: Folder, other: Folder | None, most: int, damaged: Collection[Damaged] = ()
    ) -> Gallery:
        names = Names()
        here = read_run(output, names, damaged)
        there = read_run(other, names, damaged) if other else None
        edits = join(names, here, there)
        shown_edits = edits.at(choose(names, edits, most))
        job = read_resolved(output)
        title_there = title_of(other, read_resolved(other)) if other else ""
        metrics = _metrics(here, there, title_there)
        titles = title_of(output, job), title_there
        rules = rules_in(output, job)
        return cls(names, here, there, job, *titles, edits, shown_edits, metrics, rules)

    def numbers(self, key: str, edits: Joined) -> np.ndarray:
        """A number of edits, or the difference of the runs in it; nan where there is none."""
        if not key.startswith(DIFFERENCE):
            return _pick(self.here, key, edits.here)
        key = key.removeprefix(DIFFERENCE)
        assert self.there
        with np.errstate(invalid="ignore"):  # infinite in both
            apart = _pick(self.here, key, edits.here) - _pick(self.there, key, edits.there)
        return np.array([float(f"{value:.6g}") for value in apart.tolist()])

    def layout(self) -> list[int]:
        """How many edits each video has that is shown."""
        ends = np.flatnonzero(np.diff(self.shown.video, append=-1)) + 1
        return [int(size) for size in np.diff(ends, prepend=0)]

    def in_order(self, edits: Collection[int]) -> list[int]:
        """Codes of edits, as a person orders their ids."""
        ids = list(self.names.edits)
        return sorted(edits, key=lambda code: natural(ids[code]))

    def states(self, edits: Joined) -> list[int]:
        absent = self.names.states[ONLY_THERE, None] if self.there else -1
        return np.where(edits.here >= 0, self.here.state[edits.here], absent).tolist()

    def verdicts(self, edits: Joined) -> list[int]:
        """Codes of `Names.verdicts`: of this run."""
        return np.where(edits.here >= 0, self.here.verdict[edits.here], 0).tolist()

    def cards(self, at_once: int) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
        """The videos that are shown, and the words of each edit, some videos at a time."""
        root_there = link_to(self.here.output, self.there.output) if self.there else ROOT
        rows = _Rows(self.here, self.shown.here)
        rows_there = _Rows(self.there, self.shown.there) if self.there else None
        start = 0
        layout = self.layout()
        for sizes in _groups(layout, at_once):
            places = range(start, start + sum(sizes))
            here = rows.at(places)
            there = rows_there.at(places) if rows_there else [None] * len(places)
            some = self.shown.at(np.arange(places.start, places.stop))
            numbers = [as_json(self.numbers(m.key, some)) for m in self.metrics]
            numbers_there = [as_json(_pick(self.there, m.key, some.there)) for m in self.metrics]
            edits = [
                Edit(here[i], [v[i] for v in numbers], there[i], [v[i] for v in numbers_there])
                for i in range(len(places))
            ]
            cards, at = [], 0
            for size in sizes:
                cards.append(make_card(edits[at : at + size], ROOT, root_there))
                at += size
            yield (
                cards,
                [_words(edit.any_row, "edit_id", "prompt", "instruction") for edit in edits],
            )
            start = places.stop

    def summary(self) -> dict[str, Any]:
        """What the page shows of the job as a whole; its sums are those of this run."""
        counts = np.bincount(self.states(self.edits), minlength=len(self.names.states))
        some = np.bincount(self.states(self.shown), minlength=len(self.names.states))
        run = self.here
        verdicts = {
            name: np.bincount(self.verdicts(edits), minlength=len(self.names.verdicts))
            for name, edits in (("all", self.edits), ("some", self.shown))
        }
        summary = {
            "edits": len(run),
            "videos": len(np.unique(self.edits.video)),
            "shown": {"videos": len(self.layout()), "edits": len(self.shown)},
            "sampled": len(self.shown) < len(self.edits),
            # all of them, as the codes of edits are their places here
            "states": [
                [*state, int(counts[code]), int(some[code])]
                for state, code in self.names.states.items()
            ],
            "verdicts": [
                [*verdict, int(verdicts["all"][code]), int(verdicts["some"][code])]
                for verdict, code in self.names.verdicts.items()
            ],
            "rules": thresholds(self.rules, run.numbers),
            "metrics": [summarise(m, self.numbers(m.key, self.edits)) for m in self.metrics],
            "timings": {part: round(seconds, 3) for part, seconds in run.timings.items()},
            "forwards": run.forwards,
            "gpuSeconds": round(run.gpu_seconds, 3),
            "retried": run.retried,
            "finished": shown(run.finished) if run.finished else "",
        }
        if self.there:
            both = int(((self.edits.here >= 0) & (self.edits.there >= 0)).sum())
            names = (self.title, self.title_there)
            if names[0] == names[1]:
                names = ("this run", "the other run")
            summary["compare"] = {
                "here": names[0],
                "there": names[1],
                "both": both,
                "onlyHere": len(run) - both,
                "onlyThere": len(self.there) - both,
            }
        return summary


class _Rows:
    """Whole rows of a run, made into Python objects some at a time."""

    def __init__(self, run: Run, places: np.ndarray) -> None:
        self._has_row = places >= 0
        self._table = read_rows(run, places[self._has_row])
        self._first: np.ndarray = (
            np.cumsum(self._has_row) - self._has_row
        )  # of the table, for each place

    def at(self, places: range) -> list[Any]:
        has_row = self._has_row[places.start : places.stop]
        some = self._table.slice(int(self._first[places.start]), int(has_row.sum()))
        rows = iter(plain_rows(some))
        return [next(rows) if has else None for has in has_row]


def title_of(output: Folder, job: Mapping[str, Any]) -> str:
    """The job's name: `name` in its job.yaml, or its folder's."""
    name = job.get("name")
    if isinstance(name, str) and name.strip():
        return name
    parts = [part for part in output.path().split("/") if part]
    known = len(parts) > 1 and parts[-1].lower() in COMMON_NAMES
    return "/".join(parts[-2 if known else -1 :]) or "Results"


def link_to(output: Folder, other: Folder) -> str:
    """The other run's folder as a page of the first one's report links to it.

    Raises:
        JobError: no relative link leads from one to the other.
    """
    here, there = output.path(), other.path()
    bucket = None if output.is_local else here.split("/")[0]
    if output.fs != other.fs or (bucket is not None and bucket != there.split("/")[0]):
        raise JobError(
            f"--compare {other.uri}: expected a folder on the same storage (and in the same "
            f"bucket) as {output.uri}, since the page links from one to the other; copy one there"
        )
    return quote(posixpath.relpath(there, posixpath.join(here, "report")))


def _metrics(here: Run, there: Run | None, title_there: str) -> list[Metric]:
    present = dict.fromkeys([*here.numbers, *(there.numbers if there else ())])
    keys = [m.key for m in METRICS if m.key in present]
    keys += [key for key in present if key not in keys]
    metrics = [describe(key) for key in keys]
    if there:
        for metric in map(describe, [key for key in keys if key in here.numbers]):
            if metric.key in there.numbers:
                metrics.append(
                    replace(
                        metric,
                        key=DIFFERENCE + metric.key,
                        label=f"{metric.label}, difference",
                        group=f"Difference to {title_there}",
                        about="This run's value minus the other run's.",
                    )
                )
    return metrics


def _pick(run: Run | None, key: str, places: np.ndarray) -> np.ndarray:
    if run is None or key not in run.numbers:
        return np.full(len(places), np.nan)
    return np.where(places >= 0, run.numbers[key][places], np.nan)


def _groups(sizes: list[int], most: int) -> Iterator[list[int]]:
    """Runs of videos for one file each: as many as asked for, fewer if they have many edits."""
    group: list[int] = []
    for size in sizes:
        if group and (len(group) == most or sum(group) + size > EDITS_IN_A_FILE):
            yield group
            group = []
        group.append(size)
    yield group


def _words(row: Any, *names: str) -> str:
    return " ".join(row[name] for name in names if row.get(name))
