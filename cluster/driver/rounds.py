"""Further rounds of a run: edits that no candidate satisfied are made again, with other noise.

After the edits of a round have their scores, those that the job's rules reject are pending again,
at most `reconstruction.until_accepted` times in all. What a round makes joins the row of the rounds
before, whose best candidate stays the edit until a better one is chosen
(`cluster/candidates/choice.py`). A run that is killed goes on with the round of each edit's newest
row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.accept import rules_of
from cluster.candidates.choice import Ranking, joined
from cluster.job import Job
from cluster.pending.done import NOT_TAKEN, PENDING, Answered
from cluster.pending.fingerprints import edit_keys
from cluster.pending.rows import PendingRows
from cluster.pending.unscored import selected
from cluster.results.compaction import find_current, read_current
from cluster.results.failed import FailedOf
from cluster.results.schema import SCHEMA, plain_rows
from cluster.selection.entries import Selection
from cluster.stages.score import decided, with_changes
from pipeline.records import EditResult, VideoSpec, from_dict
from pipeline.storage import Folder

Key = tuple[str | None, str | None]
OF_A_ROUND = (
    *("status", "error_code", "error", "output", "size_bytes", "mask"),
    *("metrics", "scores", "candidate", "candidates"),
)
"""What a round's row takes from those before it."""


@dataclass(frozen=True)
class Round:
    """A further round: its number, counted from 0, and the rows of the manifest that it makes."""

    number: int
    pending: PendingRows

    @property
    def note(self) -> str:
        edits = self.pending.edits
        return (
            f"round {self.number + 1}: {edits} edit{'s' * (edits != 1)} that no candidate satisfied"
        )


class Rounds:
    """The rejected edits of a run, and the rounds that they get.

    Args:
        pending: the rows of the job, or what stands for them where there are no rounds.
        earlier: rejected rows of earlier runs (`find_rejected`).
    """

    def __init__(self, job: Job, pending: PendingRows, earlier: Iterable[pa.Table] = ()) -> None:
        self._pending, self._job = pending, job
        self._rejected: dict[Key, EditResult] = {}
        self._number = 0
        self._ranking = Ranking.of(job)
        for table in earlier:
            self.saw(table)

    def saw(self, scored: pa.Table) -> None:
        """Rows with their scores: those that are rejected and have a round left are kept."""
        if self._job.editing.reconstruction.until_accepted == 1:
            return
        for one in plain_rows(scored):
            key = one["video_id"], one["edit_id"]
            self._rejected.pop(key, None)
            row = from_dict(EditResult, {n: v for n, v in one.items() if n in SCHEMA.names})
            # A score that is missing rejects today, and the next run may find it good.
            is_sure = self._ranking is not None and self._ranking.is_measured(row.scores)
            if is_sure and has_a_round_left(self._job, row):
                self._rejected[key] = row

    def __len__(self) -> int:
        """Edits that are rejected and have a round left."""
        return len(self._rejected)

    def next(self) -> Round | None:
        """The next round that has something to do."""
        while self._number + 1 < self._job.editing.reconstruction.until_accepted:
            self._number += 1
            answered = self._answered()
            if (answered.edits == PENDING).any():
                return Round(self._number, replace(self._pending, answered=answered, limit=None))
        return None

    def joined(self, results: pa.Table) -> pa.Table:
        """Results of this round as the rows of their edits."""
        if not self._number:
            return results
        changes = []
        for one in plain_rows(results):
            before = self._rejected.get((one["video_id"], one["edit_id"]))
            made = from_dict(EditResult, {n: v for n, v in one.items() if n in SCHEMA.names})
            row = asdict(joined(before, made)) if before else {}
            taken = {name: row[name] for name in OF_A_ROUND if name in row}
            changes.append(taken | ({"round": self._number} if before else {}))
        return with_changes(results, changes)

    def _answered(self) -> Answered:
        """The edits of the manifest, with those pending that this round makes again."""
        job, own = self._job, self._job.fingerprint()
        wanted = {
            key: row.fingerprint
            for key, row in self._rejected.items()
            if row.round == self._number - 1
        }
        kinds = np.full(len(self._pending.answered.edits), NOT_TAKEN, np.uint8)
        names = list(VideoSpec.__dataclass_fields__)
        first = 0
        for table in job.files.tables(names) if wanted else ():
            keys = edit_keys(job, own, table)._asdict()
            columns = (pa.array(keys[name], pa.string()) for name in ("video_id", "edit_id"))
            prints = pa.array(keys["fingerprint"], pa.string()).to_pylist()
            ids = zip(*(column.to_pylist() for column in columns), strict=True)
            for place, (key, made) in enumerate(zip(ids, prints, strict=True), first):
                if made and wanted.get(key) == made:
                    kinds[place] = PENDING
            first += len(prints)
        return Answered(kinds, self._pending.answered.ends, FailedOf())


def find_rejected(job: Job, selection: Selection | None = None) -> list[pa.Table]:
    """The rows of earlier runs whose edits are rejected and have a round left.

    Args:
        selection: of the edits; all by default.

    Raises:
        Unreadable: storage does not give a file.
    """
    how, output = job.editing.reconstruction, Folder(job.editing.output)
    if how.until_accepted == 1:
        return []
    found = []
    for table in read_current(output, find_current(output)):
        if not {"accepted", "round"} <= set(table.column_names):
            continue
        rows = table.filter(
            pc.and_(pc.equal(table["status"], "ok"), pc.is_valid(table["accepted"]))
        )
        rows = rows.filter(pc.less(pc.fill_null(rows["round"], 0), how.until_accepted - 1))
        rows = decided(rows, rules_of(job))  # the job's rules may be others since
        rows = rows.filter(pc.fill_null(pc.invert(rows["accepted"]), False))
        rows = rows.filter(selected(rows, selection))
        found += [rows] if rows.num_rows else []
    return found


def has_a_round_left(job: Job, row: EditResult) -> bool:
    return (
        row.status == "ok"
        and row.accepted is False
        and bool(row.candidates)
        and row.round + 1 < job.editing.reconstruction.until_accepted
    )
