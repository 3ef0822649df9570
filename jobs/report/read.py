"""The report's reading of the results: of each row its names and numbers, and whole rows later.

A job may have more rows than fit into memory as Python objects. So a run is read three times, part
by part: which rows are current, then the numbers of each, then in full those that are shown.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.results.compaction import find_current, read_current
from cluster.results.damaged import Damaged
from cluster.results.schema import SCHEMA, join_tables
from jobs.errors import JobError
from jobs.report.scores import COLUMNS, NO_VERDICT, score_numbers, verdicts
from pipeline.errors import ErrorCode
from pipeline.storage import Folder

OWN = frozenset(SCHEMA.names)  # all other columns came with the manifest or were added later
ONLY_THERE = "absent"  # the status of an edit that only the other run has
_TOTALS = ("attempts", "forwards", "gpu_seconds", "timings", "metrics", "finished_at")
_NAMES = ("video_id", "edit_id", "video", "status", "error_code")
_NEEDED = frozenset((*_NAMES, *_TOTALS, *COLUMNS))
_DIGITS = 6  # significant ones; more would double the size of the page's data
_EXACT = 2.0**53  # whole numbers below have all their digits in a float


class Codes(dict[Any, int]):
    """A number for each value, in the order in which values come."""

    def __missing__(self, value: Any) -> int:
        self[value] = len(self)
        return self[value]


@dataclass
class Names:
    """The distinct names of all runs that a report shows.

    Args:
        videos: (`video_id`, None), or with the video itself where another one may have its id, or
            none: that is what is wrong with it.
        edits: `edit_id`.
        states: (status, error code).
        verdicts: (accepted, the rules that do not hold).
    """

    videos: Codes = field(default_factory=Codes)
    edits: Codes = field(default_factory=Codes)
    states: Codes = field(default_factory=Codes)
    verdicts: Codes = field(default_factory=lambda: Codes({NO_VERDICT: 0}))


@dataclass
class Run:
    """What is held of every current row of a run, [n] each, in the order of its files.

    Args:
        current: the numbers of its current rows, by file.
        video, edit, state, verdict: codes of `Names`.
        numbers: every number that edits can be compared by; nan where a row has none.
        timings, forwards: sums, by part.
    """

    output: Folder
    current: Mapping[str, np.ndarray]
    video: np.ndarray
    edit: np.ndarray
    state: np.ndarray
    verdict: np.ndarray
    numbers: dict[str, np.ndarray]
    timings: Counter[str]
    forwards: Counter[str]
    gpu_seconds: float
    retried: int
    finished: datetime | None

    def __len__(self) -> int:
        return len(self.video)


def read_run(output: Folder, names: Names, damaged: Collection[Damaged] = ()) -> Run:
    """Read the names and numbers of a run.

    Args:
        damaged: files of results that are left out.

    Raises:
        JobError: the output folder holds no results.
        PartGone, PartDamaged: as `read_current`.
    """
    left_out = [one.name for one in damaged if one.output == output]
    current = find_current(output, without=left_out)
    parts: list[np.ndarray] = []
    numbers: dict[str, list[tuple[int, np.ndarray]]] = {}
    run = Run(
        output, current, *(np.zeros(0, np.int64),) * 4, {}, Counter(), Counter(), 0.0, 0, None
    )
    count = 0
    for table in read_current(output, current, _is_needed):
        parts.append(_codes(table, names))
        for key, values in _numbers(table).items():
            numbers.setdefault(key, []).append((count, values))
        count += table.num_rows
        _add_totals(run, table)
    if not count:
        raise JobError(
            f"{output.uri}: no rows in results/*.parquet; a report shows a job's results, so run "
            "the job first, with the same output folder"
        )
    run.video, run.edit, run.state, run.verdict = np.concatenate(parts, axis=1)
    run.numbers = {key: _whole(numbers.pop(key), count) for key in list(numbers)}
    return run


def read_rows(run: Run, places: np.ndarray) -> pa.Table:
    """The rows at the given places among a run's current ones, in that order.

    Raises:
        PartGone, PartDamaged: as `read_current`.
    """
    order = np.argsort(places, kind="stable")
    wanted, start = places[order], 0
    tables = []
    for table in read_current(run.output, run.current):
        low, high = np.searchsorted(wanted, (start, start + table.num_rows))
        if high > low:
            tables.append(table.take(pa.array(wanted[low:high] - start)))
        start += table.num_rows
    if not tables:
        return SCHEMA.empty_table()
    return join_tables(tables).take(pa.array(np.argsort(order)))


@dataclass(frozen=True)
class Joined:
    """The edits of a report, of one run or of two, in a person's order of videos and edits.

    Args:
        video, edit: codes, [n].
        here, there: the places of the edits' rows in this run and in the other, [n]; -1 for none.
    """

    video: np.ndarray
    edit: np.ndarray
    here: np.ndarray
    there: np.ndarray

    def __len__(self) -> int:
        return len(self.video)

    def at(self, chosen: np.ndarray) -> Joined:
        return Joined(*(a[chosen] for a in (self.video, self.edit, self.here, self.there)))


def join(names: Names, here: Run, there: Run | None) -> Joined:
    """Match the rows of two runs by (`video_id`, `edit_id`)."""
    videos = _ranks(names.videos, lambda name: (natural(name[0]), name[1] or ""))
    edits = _ranks(names.edits, lambda name: (name is not None, natural(name)))
    keys = [
        _keys(run, videos, edits) if run else np.zeros((0, 3), np.int64) for run in (here, there)
    ]
    union, inverse = np.unique(np.concatenate(keys), axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)  # NumPy 2.0 gives it another shape
    places = np.full((2, len(union)), -1, np.int64)
    places[0, inverse[: len(here)]] = np.arange(len(here))
    places[1, inverse[len(here) :]] = np.arange(len(keys[1]))
    return Joined(np.argsort(videos)[union[:, 0]], np.argsort(edits)[union[:, 1]], *places)


def choose(names: Names, joined: Joined, most: int) -> np.ndarray:
    """The places of at most `most` edits that a report shows, in order: whole videos.

    Which videos is decided by a hash of their ids, so a second report shows the same ones. Of a
    video with more edits than that, those edits are chosen alike.
    """
    if len(joined) <= most:
        return np.arange(len(joined))
    of_video = np.array([_hash(name) for name in names.videos], np.uint64)
    of_edit = np.array([_hash(name) for name in names.edits], np.uint64)
    order = np.lexsort((of_edit[joined.edit], joined.video, of_video[joined.video]))
    ends = np.flatnonzero(np.diff(joined.video[order], append=-1)) + 1
    whole = ends[ends <= most]
    return np.sort(order[: whole[-1] if len(whole) else most])


def as_json(values: np.ndarray) -> list[float | None]:
    """Numbers as the page's data have them: None for nan, no `.0` after whole ones."""
    return [
        None if math.isnan(v) else int(v) if abs(v) < _EXACT and v.is_integer() else v
        for v in values.tolist()
    ]


def is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _is_needed(column: pa.Field) -> bool:
    """Whether a column holds names or numbers; long texts are read for the rows that are shown."""
    return column.name in _NEEDED if column.name in OWN else is_number(column.type)


def _codes(table: pa.Table, names: Names) -> np.ndarray:
    """The codes of rows: [4, n]."""
    columns = ("video_id", "video", "edit_id", "status", "error_code")
    ids, videos, edits, statuses, codes = (table[name].to_pylist() for name in columns)
    other = [
        video if video_id is None or code == ErrorCode.DUPLICATE_VIDEO_ID else None
        for video_id, video, code in zip(ids, videos, codes, strict=True)
    ]
    return np.array(
        [
            [names.videos[name] for name in zip(ids, other, strict=True)],
            [names.edits[name] for name in edits],
            [names.states[name] for name in zip(statuses, codes, strict=True)],
            [names.verdicts[name] for name in verdicts(table)],
        ],
        np.int64,
    )


def _numbers(table: pa.Table) -> dict[str, np.ndarray]:
    columns = {name: table[name] for name in table.column_names if name not in OWN}
    columns |= _fields(table, "metrics")
    older = {key: _rounded(c) for key, c in columns.items() if is_number(c.type)}
    scores = {key: _rounded(c) for key, c in score_numbers(table).items() if is_number(c.type)}
    for key in scores.keys() & older.keys():  # a version before kept some in columns of their own
        scores[key] = np.where(np.isnan(scores[key]), older[key], scores[key])
    numbers = older | scores
    gpu_seconds = _rounded(table["gpu_seconds"])
    kinds = _fields(table, "forwards")
    forwards = [_rounded(column) for name, column in kinds.items() if name != "skipped"]
    numbers["gpu_seconds"] = np.where(gpu_seconds == 0, np.nan, gpu_seconds)  # none on a CPU
    if forwards:
        has_none = np.isnan(forwards).all(axis=0)
        numbers["forwards"] = np.where(has_none, np.nan, np.nansum(forwards, axis=0))
    return {key: values for key, values in numbers.items() if not np.isnan(values).all()}


def _fields(table: pa.Table, name: str) -> dict[str, pa.ChunkedArray]:
    """The fields of a struct as columns."""
    if not pa.types.is_struct(table.schema.field(name).type):
        return {}
    return dict(
        zip((f.name for f in table.schema.field(name).type), table[name].flatten(), strict=True)
    )


def _rounded(column: pa.ChunkedArray) -> np.ndarray:
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    if pa.types.is_integer(column.type):
        return values
    return np.array([float(f"{value:.{_DIGITS}g}") for value in values.tolist()])


def _whole(pieces: Sequence[tuple[int, np.ndarray]], count: int) -> np.ndarray:
    values = np.full(count, np.nan)
    for start, piece in pieces:
        values[start : start + len(piece)] = piece
    return values


def _add_totals(run: Run, table: pa.Table) -> None:
    for sums, name in ((run.timings, "timings"), (run.forwards, "forwards")):
        for part, column in _fields(table, name).items():
            if is_number(column.type) and (total := pc.sum(column).as_py()):
                sums[part] += total
    run.gpu_seconds += pc.sum(table["gpu_seconds"]).as_py() or 0.0
    run.retried += pc.sum(pc.greater(table["attempts"], 1)).as_py() or 0
    last = pc.max(table["finished_at"]).as_py()
    run.finished = max(filter(None, (run.finished, last)), default=None)


def _keys(run: Run, videos: np.ndarray, edits: np.ndarray) -> np.ndarray:
    """[n, 3]: the ranks of a row's video and edit, and its number among rows with the same two."""
    keys = np.stack([videos[run.video], edits[run.edit], np.zeros(len(run), np.int64)], axis=1)
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    same = np.append(False, (keys[order][1:, :2] == keys[order][:-1, :2]).all(axis=1))
    at = np.arange(len(run))
    keys[order, 2] = at - np.maximum.accumulate(np.where(same, 0, at))
    return keys


def _ranks(names: Codes, key: Any) -> np.ndarray:
    """The place of each code when the names are sorted."""
    ranks = np.zeros(len(names), np.int64)
    for rank, name in enumerate(sorted(names, key=key)):
        ranks[names[name]] = rank
    return ranks


def natural(text: str | None) -> tuple[list[Any], str]:
    """Sorts `clip-10` after `clip-9`."""
    text = text or ""
    parts = re.split(r"([0-9]{1,18})", text)  # every second part is a number
    return [int(part) if at % 2 else part for at, part in enumerate(parts)], text


def _hash(name: Any) -> int:
    return int.from_bytes(hashlib.blake2b(repr(name).encode(), digest_size=8).digest())
