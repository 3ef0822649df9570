"""What must be known of a whole manifest before its rows stream: which ids repeat, and how many.

Only the columns that give ids are read, batch by batch. DuckDB finds the ids that repeat: 10^7 rows
take some 100 MB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cluster.manifest import ManifestFiles
from cluster.pending.ids import edits_of, video_ids
from cluster.results.newest import database


@dataclass(frozen=True)
class Scan:
    """What a manifest holds.

    Args:
        counts: how many edits each row has, [videos].
        repeated: the numbers of the rows whose `video_id` a row before them has, ascending.
    """

    counts: np.ndarray
    repeated: np.ndarray

    @property
    def videos(self) -> int:
        """Rows of the manifest."""
        return len(self.counts)

    @property
    def edits(self) -> int:
        """Results that a run of the whole manifest gives: a row without edits has one, too."""
        return int(np.maximum(self.counts, 1).sum())


def scan_manifest(files: ManifestFiles) -> Scan:
    """Read the ids of a manifest's rows, in the order of its files."""
    counts: list[np.ndarray] = []
    rows = 0
    with database() as found:
        found.execute("CREATE TABLE ids (row BIGINT, id UHUGEINT)")
        for table in files.tables(["video", "video_id", "edits"]):
            numbers = np.arange(rows, rows + table.num_rows)
            ids = pa.table({"row": numbers, "id": pa.array(video_ids(table), pa.string())})
            found.register("batch", ids)
            found.execute("INSERT INTO ids SELECT row, md5_number(id) FROM batch WHERE id != ''")
            found.unregister("batch")
            counts.append(edits_of(table).counts)
            rows += table.num_rows
        again = found.execute(
            "SELECT row FROM ids JOIN (SELECT id, min(row) AS first FROM ids GROUP BY id "
            "HAVING count(*) > 1) AS repeated USING (id) WHERE row > first ORDER BY row"
        ).fetchnumpy()["row"]
    return Scan(np.concatenate(counts) if counts else np.zeros(0, np.int64), again.astype(np.int64))
