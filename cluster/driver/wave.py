"""A wave: rows that go through one execution of Ray Data, and those of them that came back without.

Ray keeps some kB of each block until an execution ends, so a run of a million rows is a row of
executions. Each finds the nodes that are there when it starts, and the rows that the one before
gave back or lost.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from cluster.layout.work import Amount
from cluster.pending.rows import Checked
from cluster.stages.blocks import VideoWork, rebuilt, work_of

ROWS = 4_000
ROWS_A_GROUP = 200
"""A wave ends with groups that wait for the last one: for about one video in so many."""
BYTES = 64 << 20
"""Of a wave's rows, with their passthrough columns: the driver holds about two waves."""
GATHER_S = 20.0
"""A wave that is not full starts so long after its first row."""
AHEAD = 4
"""Tables that the feeder has ready."""

Key = tuple[str | None, str | None]


@dataclass
class Wave:
    """Rows on their way, and which of their edits have no result yet.

    Args:
        work: columns of `VideoWork`, and the passthrough columns.
    """

    work: pa.Table
    waiting: set[Key] = field(default_factory=set)

    def __post_init__(self) -> None:
        for video_id, edits in zip(
            self.work["video_id"].to_pylist(), self.work["edits"].to_pylist(), strict=True
        ):
            self.waiting.update((video_id, edit["edit_id"]) for edit in edits)

    @property
    def amount(self) -> Amount:
        return Amount(self.work.num_rows, len(self.waiting))

    @property
    def videos(self) -> int:
        """How many have edits without a result."""
        return len({video_id for video_id, _ in self.waiting})

    def new_results(self, table: pa.Table) -> pa.Table:
        """The results that are the first of their edits; Ray may run a block twice."""
        keys = list(zip(table["video_id"].to_pylist(), table["edit_id"].to_pylist(), strict=True))
        first = [self._is_first(key) for key in keys]
        return table if all(first) else table.filter(pa.array(first, pa.bool_()))

    def _is_first(self, key: Key) -> bool:
        first = key in self.waiting
        self.waiting.discard(key)
        return first

    def left(self) -> pa.Table:
        """The rows without all of their results, each with the edits that have none."""
        videos = pa.array(sorted({str(video_id) for video_id, _ in self.waiting}), pa.string())
        with_left = pc.is_in(self.work["video_id"], videos)
        table = self.work.filter(with_left)
        return rebuilt(table, [self._left_of(v) for v in work_of(table)], range(len(table)))

    def _left_of(self, video: VideoWork) -> VideoWork:
        edits = tuple(e for e in video.edits if (video.video_id, e.edit_id) in self.waiting)
        return replace(video, edits=edits)


class Feed:
    """Takes checked rows ahead of the run, in a thread that ends with the process.

    Args:
        pending: the rows of the job.
    """

    def __init__(self, pending: Iterable[Checked]) -> None:
        self._ready: queue.Queue[Checked | Exception | None] = queue.Queue(AHEAD)
        self._rows: list[pa.Table] = []
        self._since = math.inf
        self.ended = False
        threading.Thread(target=self._read, args=(pending,), daemon=True).start()

    def _read(self, pending: Iterable[Checked]) -> None:
        try:
            for checked in pending:
                self._ready.put(checked)
            self._ready.put(None)
        except Exception as error:  # the driver raises it
            self._ready.put(error)

    def take(self, most_rows: int, wait_s: float) -> pa.Table | None:
        """Take what is ready, as long as less than a wave is held.

        Returns:
            The results of what the check refused, if something came.
        """
        if self.ended or self._full(most_rows):
            return None
        try:
            checked = self._ready.get(timeout=wait_s)
        except queue.Empty:
            return None
        if checked is None:
            self.ended = True
            return None
        if isinstance(checked, Exception):
            self.ended = True
            raise checked
        if checked.work.num_rows:
            self.put(checked.work)
        return checked.refused

    def put(self, work: pa.Table) -> None:
        """Have rows in the next wave, before those that follow."""
        if work.num_rows:
            self._rows.append(work)
            self._since = min(self._since, time.monotonic())

    def wave(self, most_rows: int) -> Wave | None:
        """The next wave, where it is full, or its rows have waited; None where it is not."""
        late = time.monotonic() - self._since >= GATHER_S
        if not self._rows or not (self.ended or late or self._full(most_rows)):
            return None
        work = pa.concat_tables(self._rows, promote_options="permissive")
        self._rows, self._since = [], math.inf
        if work.num_rows > most_rows:
            self.put(work.slice(most_rows))
            work = work.slice(0, most_rows)
        return Wave(work)

    @property
    def empty(self) -> bool:
        """Whether no row is held, and none follows."""
        return self.ended and not self._rows

    def _full(self, most_rows: int) -> bool:
        rows = sum(table.num_rows for table in self._rows)
        return rows >= most_rows or sum(table.nbytes for table in self._rows) >= BYTES


def most_rows(groups: int) -> int:
    """Rows of a wave for so many groups."""
    return max(ROWS, ROWS_A_GROUP * groups)
