"""What is pending of a manifest: the driver checks its rows, and gives groups good ones only."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cluster.job import Job
from cluster.layout.work import Amount
from cluster.pending.check import RowCheck
from cluster.pending.done import DONE, NOT_TAKEN, PENDING, QUARANTINED, Answered
from cluster.pending.ids import video_ids
from cluster.pending.missing import LOOK_AT_ONCE, MissingVideos, Places
from cluster.pending.refused import results_of_refused
from cluster.pending.scan import Scan
from cluster.results.schema import SCHEMA
from cluster.rows import default_id_of
from cluster.selection.entries import Selection, names_of, own_id
from cluster.selection.survey import Survey, survey
from cluster.stages.blocks import VideoWork, manifest_rows, rebuilt
from pipeline.records import EditResult

FIRST_ROWS = 32
"""The first table has so few rows, and each after it twice as many: groups wait for the first."""
MOST_ROWS = 4096


@dataclass(frozen=True)
class Checked:
    """Some rows of a manifest after the row check.

    Args:
        work: the videos with pending edits, and these edits alone: columns of `VideoWork`, and the
            passthrough columns.
        refused: the results of what was refused: columns of the results, and the passthrough ones.
    """

    work: pa.Table
    refused: pa.Table


class Look(NamedTuple):
    """A row that was checked.

    Args:
        origin: its number in the table that it came in.
        row: the manifest's own columns.
        kinds: what the results say of its edits.
        work: what is to be done for it, with what was refused of it; None for nothing.
    """

    origin: int
    row: Mapping[str, Any]
    kinds: np.ndarray
    work: VideoWork | None


@dataclass(frozen=True)
class PendingRows:
    """The rows of a manifest that have something pending. Each pass reads the manifest again.

    Args:
        answered: what the results say of the manifest's edits.
        selection: the edits to take; all of them by default.
        limit: stop at so many videos with pending edits. Rows without one, which are done or
            refused, are not taken then: a limited run goes on where the last one stopped.
        places: where videos are looked for: one that is certainly not there is refused.
    """

    job: Job
    scan: Scan
    answered: Answered
    selection: Selection | None = None
    limit: int | None = None
    places: Places = Places.OBJECTS

    @cached_property
    def found(self) -> Survey:
        """How much there is to do; exact where the run takes a part of the manifest."""
        if self.selection or self.limit is not None or self.answered.only:
            return survey(self)
        found = Survey()
        counts, left_out = self.scan.counts, self.answered.left_out()
        pending = counts - left_out
        found.done, found.quarantined = map(self.answered.count, (DONE, QUARANTINED))
        found.refused["no_edits"] = int((counts == 0).sum())
        pending[self.scan.repeated] = 0
        found.videos, found.pending = int((pending > 0).sum()), int(pending.sum())
        found.refused["duplicate_video_id"] = int(counts[self.scan.repeated].sum())
        return found

    @property
    def edits(self) -> int:
        """Results that a run gives."""
        return self.found.edits

    @property
    def before(self) -> int:
        """Edits that were done before."""
        return self.found.done

    @property
    def quarantined(self) -> int:
        """Edits that an earlier run has quarantined, and that are left out."""
        return self.found.quarantined

    @property
    def amount(self) -> Amount:
        """What groups are going to do, at most."""
        return Amount(self.found.videos, self.found.pending)

    def __iter__(self) -> Iterator[Checked]:
        """The rows in the manifest's order, in tables of up to `MOST_ROWS`.

        Raises:
            Unreadable: rows of the manifest cannot be read.
        """
        videos = MissingVideos(self.places)
        with ThreadPoolExecutor(LOOK_AT_ONCE) as pool:
            for table, looks in self.looks():
                works = [look.work for look in looks if look.work]
                origins = [look.origin for look in looks if look.work]
                if works:
                    yield self._checked(table, [*_looked_for(videos, works, pool)], origins)

    def looks(self) -> Iterator[tuple[pa.Table, list[Look]]]:
        """Rows of the manifest as they are checked, with the table that they come from."""
        check, left = RowCheck.of(self.job), self.limit
        for table, numbers in self._tables():
            looks = []
            rows = manifest_rows(table)
            for origin, (number, row) in enumerate(zip(numbers.tolist(), rows, strict=True)):
                look = self._look(check, origin, number, row)
                if left is not None and not (look.work and look.work.pending):
                    continue
                looks.append(look)
                if left is not None and len(looks) == left:
                    break
            yield table, looks
            if left is not None and not (left := left - len(looks)):
                return

    def _look(self, check: RowCheck, origin: int, number: int, row: Mapping[str, Any]) -> Look:
        kinds = self.answered.of_row(number)
        done: frozenset[str] = frozenset()
        if kinds.any():
            edits = zip(row["edits"], kinds, strict=True)
            done = frozenset(e.get("edit_id") or default_id_of(e) for e, kind in edits if kind)
        work = check.work(
            row,
            repeated=number in self._repeated,
            done=done,
            quarantined=int(np.isin(kinds, (QUARANTINED, NOT_TAKEN)).sum()),
        )
        if work and self.answered.only:
            work = _only_taken(work, row, kinds)
        taken = self.selection.part(work) if work and self.selection else work
        return Look(origin, row, kinds, taken)

    def _tables(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """The rows that may have something to do, and the number of each in the manifest."""
        first, most = 0, FIRST_ROWS
        for table in self.job.files.tables():
            wanted = np.ones(table.num_rows, bool)
            if not self.selection or self.limit is not None:
                wanted = self._open[first : first + table.num_rows]
            if self.selection and wanted.any():
                wanted = wanted & [self.selection.takes_video(one) for one in video_ids(table)]
            places = np.flatnonzero(wanted)
            while len(places):
                part, places = places[:most], places[most:]
                yield table.take(pa.array(part)), part + first
                most = min(2 * most, MOST_ROWS)
            first += table.num_rows

    @cached_property
    def _open(self) -> np.ndarray:
        """Whether a row of the manifest has something to do, refusals counted, [rows]."""
        counts = self.scan.counts
        return (self.answered.left_out() < counts) | ((counts == 0) & (self.answered.only is None))

    @cached_property
    def _repeated(self) -> frozenset[int]:
        return frozenset(self.scan.repeated.tolist())

    def _checked(
        self, table: pa.Table, works: Sequence[VideoWork], origins: Sequence[int]
    ) -> Checked:
        good: list[VideoWork] = []
        refused: list[EditResult] = []
        of_good, of_refused = list[int](), list[int]()
        for work, origin in zip(works, origins, strict=True):
            if work.pending:
                edits = tuple(edit for edit in work.edits if edit.pending)
                good.append(replace(work, edits=edits))
                of_good.append(origin)
            results = results_of_refused(work, self.job.run)
            refused += results
            of_refused += [origin] * len(results)
        return Checked(rebuilt(table, good, of_good), rebuilt(table, refused, of_refused, SCHEMA))


def _only_taken(work: VideoWork, row: Mapping[str, Any], kinds: np.ndarray) -> VideoWork | None:
    """The work without edits that the check refuses and the run does not take."""
    edits = zip(names_of(row)[1], kinds, strict=False)  # a row without edits has one name
    taken = {edit_id for edit_id, kind in edits if kind == PENDING}
    good = not work.error_code
    left = tuple(e for e in work.edits if (good and e.pending) or own_id(e) in taken)
    return replace(work, edits=left) if left else None


def _looked_for(
    videos: MissingVideos, works: Iterable[VideoWork], pool: ThreadPoolExecutor
) -> Iterator[VideoWork]:
    """Each work with the errors of what is not there, in order.

    Few are looked for ahead: a process that is to end waits for those that it has asked for.
    """
    ahead: deque[Future[VideoWork]] = deque()
    for work in works:
        ahead.append(pool.submit(videos.looked_for, work))
        if len(ahead) == 2 * LOOK_AT_ONCE:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()
