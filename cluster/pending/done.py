"""Which edits of a manifest a run leaves out, since an earlier run has answered them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from cluster.job import Job
from cluster.pending.fingerprints import edit_keys
from cluster.pending.scan import Scan
from cluster.results.damaged import Damaged, warn
from cluster.results.failed import FailedOf, load_failed
from cluster.results.newest import EDIT, database, newest_rows
from pipeline.records import VideoSpec
from pipeline.storage import Folder

PENDING, DONE, QUARANTINED, NOT_TAKEN = 0, 1, 2, 3
KEY = "md5_number(concat_ws(chr(0), video_id, edit_id, fingerprint))"
"""What stands for an edit made under certain settings, 128 bits."""


@dataclass(frozen=True)
class Answered:
    """What the results say of a manifest's edits.

    Args:
        edits: PENDING, DONE, QUARANTINED, or NOT_TAKEN where an edit is pending and the run takes
            failed ones only, [edits] in the manifest's order.
        ends: how many edits the rows up to and with each have, [rows].
        only: which failed edits the run takes; None where it takes all that is pending.
    """

    edits: np.ndarray
    ends: np.ndarray
    only: FailedOf | None = None

    def of_row(self, row: int) -> np.ndarray:
        """The same of one row's edits."""
        return self.edits[(self.ends[row - 1] if row else 0) : self.ends[row]]

    def left_out(self) -> np.ndarray:
        """How many edits of each row a run leaves out, [rows]."""
        return self._by_row(self.edits != PENDING)

    def count(self, kind: int) -> int:
        return int((self.edits == kind).sum())

    def _by_row(self, chosen: np.ndarray) -> np.ndarray:
        sums = np.concatenate([[0], np.cumsum(chosen)])
        return np.diff(sums[self.ends], prepend=0)


def find_answered(
    job: Job,
    scan: Scan,
    *,
    retry_quarantined: bool = False,
    only: FailedOf | None = None,
    on_damaged: Callable[[Damaged], None] = warn,
) -> Answered:
    """Compare a manifest with the results of its job.

    An edit is done where its newest row is `ok` and has the fingerprint that the job asks for. One
    whose newest row is `quarantined` has had its tries.

    Args:
        retry_quarantined: these are pending, too.
        only: of what is pending only these failed edits, quarantined ones with them. An edit is
            one by its ids: settings that have changed since, perhaps for its sake, do not matter.

    Raises:
        Unreadable: storage does not give a file.
    """
    kinds = np.zeros(int(scan.counts.sum()), np.uint8)
    answered = Answered(kinds, np.cumsum(scan.counts), only)
    kept = ["ok"] if retry_quarantined else ["ok", "quarantined"]
    with database() as found:
        columns = {"key": KEY, "status": "status"}
        newest_rows(found, Folder(job.editing.output), columns, on_damaged)
        found.execute(f"DELETE FROM newest WHERE status NOT IN ({', '.join(map(repr, kept))})")
        failed = load_failed(found, Folder(job.editing.output), only, on_damaged) if only else 0
        if not failed and not found.execute("SELECT count(*) FROM newest").fetchall()[0][0]:
            kinds[:] = NOT_TAKEN if only else PENDING
            return answered
        found.execute("CREATE TABLE keys (number BIGINT, key UHUGEINT, edit UHUGEINT)")
        names = [field.name for field in fields(VideoSpec)]
        number, own, edit = 0, job.fingerprint(), EDIT if only else "NULL"
        for table in job.files.tables(names):
            keys = pa.table(edit_keys(job, own, table)._asdict(), schema=_KEYS)
            numbers = np.arange(number, number + keys.num_rows)
            found.register("batch", keys.append_column("number", pa.array(numbers)))
            found.execute(
                f"INSERT INTO keys SELECT number, {KEY}, {edit} FROM batch WHERE fingerprint != ''"
            )
            found.unregister("batch")
            number += keys.num_rows
        same = found.execute(
            "SELECT number, status = 'ok' AS ok FROM keys JOIN newest USING (key)"
        ).fetchnumpy()
        kinds[same["number"]] = np.where(same["ok"], DONE, QUARANTINED)
        if only:
            query = "SELECT number FROM keys SEMI JOIN failed USING (edit)"
            _leave_out_others(kinds, found.execute(query).fetchnumpy()["number"])
    for row in scan.repeated:  # the check refuses these, which have the ids of another row
        answered.of_row(row)[:] = NOT_TAKEN if only else PENDING
    return answered


def _leave_out_others(kinds: np.ndarray, failed: np.ndarray) -> None:
    """Of what is not done, leave only these numbers of edits pending."""
    taken = failed[kinds[failed] != DONE]  # one may be as it was when it was made
    kinds[kinds == PENDING] = NOT_TAKEN
    kinds[taken] = PENDING


_KEYS = pa.schema({name: pa.string() for name in ("video_id", "edit_id", "fingerprint")})
