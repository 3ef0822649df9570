"""What a plan counts of a manifest: by columns, so that 10^6 rows take some seconds.

Rows are not checked: that takes 100 times as long, and `retake validate` does it.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.estimate.dataset import VideoGroup
from cluster.manifest import ManifestFiles
from cluster.pending.done import DONE, PENDING, Answered
from cluster.pending.fingerprints import edit_ids
from cluster.pending.ids import Edits, edits_of, video_ids
from cluster.results.newest import database
from cluster.selection.entries import Selection
from pipeline.media.counts import FrameRule
from pipeline.settings import Reconstruction

if TYPE_CHECKING:
    import duckdb

COLUMNS = ("video", "video_id", "source_prompt", "edits", "start_frame", "num_frames", "fps")
OPEN, MIXED = -1.0, -2.0
"""In the place of a number: the job's own is taken; edits of one row have several."""
TEXTS_AT_ONCE = 1 << 18
"""Prompts that are held until their hashes are taken."""


@dataclass(frozen=True)
class Source:
    """A row of the manifest whose video may be looked at."""

    video: str
    start_frame: int
    num_frames: int | None
    fps: float | None


class Kind(NamedTuple):
    """Videos that cost the same.

    Args:
        frames: of a clip, at most.
        edits: to be made of each.
        guidance_scale: of all its edits; None for the job's.
        inverted: an edit of each is made, and its trajectory is kept.
    """

    frames: int
    edits: int
    guidance_scale: float | None = None
    inverted: bool = False


@dataclass(frozen=True)
class Counted:
    """What of a manifest a plan is for.

    Args:
        kinds: how many videos there are of each kind.
        prompts: different texts to encode, the empty one of the inversion among them.
        mixed_guidance: videos whose edits have different guidance scales; the job's stands for
            them.
        too_short: videos whose `num_frames` is below what a clip needs; they are not in `clips`.
        sources: some rows, chosen by the seed.
    """

    kinds: Mapping[Kind, int]
    prompts: int
    mixed_guidance: int = 0
    too_short: int = 0
    sources: tuple[Source, ...] = ()

    @property
    def videos(self) -> int:
        return sum(self.kinds.values())

    @property
    def edits(self) -> int:
        return sum(kind.edits * videos for kind, videos in self.kinds.items())


@dataclass(frozen=True)
class Wanted:
    """What a plan counts.

    Args:
        frames: the most that a clip of the job can have.
        rule: which numbers of frames there can be.
        how: which prompts an edit needs, and how it is guided by default.
        kept: whether a trajectory stays once an edit of its video is made.
        answered: what the results say; None where all edits count.
        selection: the edits to take; all by default.
        limit: so many videos with pending edits, the first ones.
        sample: so many rows to look at.
        seed: of their choice.
    """

    frames: int
    rule: FrameRule
    how: Reconstruction
    kept: bool = True
    answered: Answered | None = None
    selection: Selection | None = None
    limit: int | None = None
    sample: int = 0
    seed: int = 0


def groups_of(kinds: Mapping[Kind, int]) -> tuple[VideoGroup, ...]:
    """Kinds of videos as an estimate takes them."""
    return tuple(
        VideoGroup(number, kind.edits, kind.frames, kind.guidance_scale, kind.inverted)
        for kind, number in kinds.items()
    )


class Abandoned(Exception):
    """Nobody waits for the count any longer."""


def count(
    files: ManifestFiles, wanted: Wanted, go_on: Callable[[], bool] = lambda: True
) -> Counted:
    """Count the rows of a manifest that have something pending.

    Args:
        go_on: asked again and again whether someone waits for it.

    Raises:
        Abandoned: nobody does.
        Unreadable: rows of the manifest cannot be read.
    """
    tally, left = _Tally(wanted), wanted.limit
    with database() as found:
        texts = _Texts(found, wanted.how)
        for some in _pending(files, wanted):
            if not go_on():
                raise Abandoned
            if left is not None:
                some = some.first(left)
                left -= int((some.per_row > 0).sum())
            tally.add(some)
            texts.add(some)
            if left == 0:
                break
        return tally.counted(texts.different())


@dataclass(frozen=True)
class _Some:
    """Rows of a manifest.

    Args:
        taken: which of their edits count, [edits].
        begun: whether an edit of a row is made already, [rows].
    """

    table: pa.Table
    edits: Edits
    taken: np.ndarray
    begun: np.ndarray

    @cached_property
    def per_row(self) -> np.ndarray:
        """How many edits of each row count, [rows]."""
        return np.bincount(self.edits.rows[self.taken], minlength=self.table.num_rows)

    @cached_property
    def rows(self) -> np.ndarray:
        """The rows that count."""
        return np.flatnonzero(self.per_row)

    def first(self, videos: int) -> _Some:
        """Only the first rows that count."""
        if len(self.rows) <= videos:
            return self
        return replace(self, taken=self.taken & (self.edits.rows < self.rows[videos]))

    def child(self, name: str) -> pa.Array | None:
        """A field of the edits that count; None where they have none of that name."""
        values = self.edits.values
        if not pa.types.is_struct(values.type) or values.type.get_field_index(name) < 0:
            return None
        column = pc.struct_field(values, name)
        return column if self.taken.all() else column.filter(pa.array(self.taken))


def _pending(files: ManifestFiles, wanted: Wanted) -> Iterator[_Some]:
    """The tables of a manifest, with what of them counts."""
    first = 0
    for table in files.tables(list(COLUMNS)):
        edits = edits_of(table)
        taken, begun = np.ones(len(edits.rows), bool), np.zeros(table.num_rows, bool)
        if wanted.answered is not None:
            reported = wanted.answered.edits[first : first + len(edits.rows)]
            taken = reported == PENDING
            begun = np.bincount(edits.rows[reported == DONE], minlength=table.num_rows) > 0
        if wanted.selection is not None:
            taken = taken & _selected(table, edits, wanted.selection)
        first += len(edits.rows)
        yield _Some(table, edits, taken, begun & wanted.kept)


def _selected(table: pa.Table, edits: Edits, selection: Selection) -> np.ndarray:
    videos = video_ids(table)
    some = [selection.takes_video(video) for video in videos]
    if not any(some):
        return np.zeros(len(edits.rows), bool)
    pairs = zip(edits.rows.tolist(), edit_ids(edits), strict=True)
    return np.array([some[row] and selection.takes(videos[row], edit) for row, edit in pairs], bool)


class _Tally:
    """Counts videos by kind, and chooses some of them."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.by_kind: Counter[tuple[float, ...]] = Counter()
        self.random = np.random.default_rng(wanted.seed)
        self.chosen: list[tuple[float, int, Source]] = []

    def add(self, some: _Some) -> None:
        if not len(some.rows):
            return
        columns = (_numbers(some.table, "num_frames"), some.per_row, _scales(some), some.begun)
        kinds = np.stack([column[some.rows].astype(np.float64) for column in columns])
        kinds, counts = np.unique(kinds, axis=1, return_counts=True)
        for kind, videos in zip(kinds.T.tolist(), counts.tolist(), strict=True):
            self.by_kind[tuple(kind)] += videos
        self._choose(some.table, some.rows)

    def _choose(self, table: pa.Table, rows: np.ndarray) -> None:
        """Keep the rows with the smallest draws, of all tables so far."""
        draws = self.random.random(len(rows))
        number = self.wanted.sample
        best = np.argsort(draws)[:number]
        if len(self.chosen) == number:
            best = best[draws[best] < (self.chosen[-1][0] if number else 0.0)]
        for place in best.tolist():
            row = table.slice(int(rows[place]), 1).to_pylist()[0]
            self.chosen.append((float(draws[place]), len(self.chosen), _source(row)))
        self.chosen = heapq.nsmallest(number, self.chosen)

    def counted(self, prompts: int) -> Counted:
        kinds: Counter[Kind] = Counter()
        too_short = mixed = 0
        for (most, edits, scale, begun), videos in self.by_kind.items():
            bound = self.wanted.frames if most == OPEN else min(most, self.wanted.frames)
            frames = self.wanted.rule.largest_at_most(int(bound))
            mixed += videos * (scale == MIXED)
            if frames is None:
                too_short += videos
                continue
            own = None if scale in (OPEN, MIXED) else scale
            kinds[Kind(frames, int(edits), own, bool(begun))] += videos
        sources = tuple(source for *_, source in self.chosen)
        ordered = sorted(kinds.items(), key=lambda item: tuple(map(_or_open, item[0])))
        return Counted(dict(ordered), prompts if kinds else 0, mixed, too_short, sources)


def _or_open(value: float | None) -> float:
    return OPEN if value is None else value


def _scales(some: _Some) -> np.ndarray:
    """The guidance scale of all taken edits of each row, or `OPEN`, or `MIXED`, [rows]."""
    scales = np.full(some.table.num_rows, OPEN)
    given = some.child("guidance_scale")
    if given is None or given.null_count == len(given):
        return scales
    values = _as_floats(given)
    rows = some.edits.rows[some.taken]
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    least, most = (f.reduceat(values, starts) for f in (np.minimum, np.maximum))
    scales[rows[starts]] = np.where(least == most, least, MIXED)
    return scales


def _source(row: Mapping[str, Any]) -> Source:
    start, most, fps = (row.get(name) for name in ("start_frame", "num_frames", "fps"))
    whole = None if most is None else int(most)
    return Source(
        str(row.get("video")), int(start or 0), whole, None if fps is None else float(fps)
    )


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column as floats, `OPEN` where it has none, [rows]."""
    if name not in table.column_names:
        return np.full(table.num_rows, OPEN)
    return _as_floats(table[name])


def _as_floats(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Numbers as floats, `OPEN` where there is none."""
    numbers = pc.fill_null(column.cast(pa.float64(), safe=False), OPEN)
    return np.nan_to_num(np.asarray(numbers), nan=OPEN)


class _Texts:
    """Counts the different prompts: by 64-bit hashes, of which 10^7 hardly have two alike."""

    def __init__(self, found: duckdb.DuckDBPyConnection, how: Reconstruction) -> None:
        self.found, self.how = found, how
        self.held: list[pa.ChunkedArray | pa.Array] = []
        found.execute("CREATE TABLE texts (hash UBIGINT)")

    def add(self, some: _Some) -> None:
        for name in ("prompt", "negative_prompt"):
            self._hold(some.child(name))
        if self.how.reference == "source" and "source_prompt" in some.table.column_names:
            self._hold(some.table["source_prompt"].take(pa.array(some.rows)))

    def _hold(self, texts: pa.Array | pa.ChunkedArray | None) -> None:
        if texts is None or texts.null_count == len(texts):
            return
        self.held.append(texts.cast(pa.large_string()))
        if sum(map(len, self.held)) >= TEXTS_AT_ONCE:
            self._hash()

    def _hash(self) -> None:
        held, self.held = self.held, []
        if held:
            arrays = [one.chunks if isinstance(one, pa.ChunkedArray) else [one] for one in held]
            column = pa.chunked_array(list(itertools.chain(*arrays)), pa.large_string())
            self.found.register("batch", pa.table({"text": column}))
            self.found.execute(
                "INSERT INTO texts SELECT DISTINCT hash(text) FROM batch WHERE text != ''"
            )
            self.found.unregister("batch")

    def different(self) -> int:
        """How many there are, with the empty prompt of the inversion."""
        self._hash()
        own: Sequence[str] = [text for text in {self.how.negative_prompt} if text]
        self.held = [pa.array(own, pa.large_string())] if own else []
        self._hash()
        return 1 + int(
            self.found.execute("SELECT count(DISTINCT hash) FROM texts").fetchall()[0][0]
        )
