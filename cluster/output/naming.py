"""The names of runs: the time at which each began. A later run's name sorts after all before it.

By that order the results tell which row of an edit is the newest, whatever the clocks of its nodes
say. So a run is named once it holds the output folder, and where the clock of an earlier driver was
ahead, one microsecond after that one's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from cluster.results.parts import part_names
from pipeline.storage import Folder

FORM = "%Y%m%dT%H%M%S.%f"
NAME = re.compile(r"\d{8}T\d{6}\.\d{6}")


def run_name() -> str:
    """A name for a run that begins now, by the clock of this machine."""
    return datetime.now(UTC).strftime(FORM)


def after(name: str, earlier: Iterable[str]) -> str:
    """A name for a run as it is, or a later one that sorts after those of earlier runs."""
    newest = newest_of(earlier)
    if name > newest:
        return name
    return (datetime.strptime(newest, FORM) + timedelta(microseconds=1)).strftime(FORM)


def newest_of(names: Iterable[str]) -> str:
    """The newest of the names that are ones of runs; "" where none is."""
    return max(filter(NAME.fullmatch, names), default="")


def runs_with_results(output: Folder) -> set[str]:
    """The names that the files of the results carry: each row's run has one, or a later run has."""
    return {name.rpartition("/")[2].partition("-")[0] for name in part_names(output)}
