"""What must be known of a whole manifest before its rows stream: which ids repeat, and how many.

Ids become names of files. Two that differ in letter case only, or in how Unicode writes the same
text, are one file on file systems that take them for the same (macOS, Windows, some shares).

Only the columns that give ids are read, batch by batch. DuckDB finds the ids that repeat: 10^7 rows
take some 100 MB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from cluster.manifest import ManifestFiles
from cluster.pending.ids import Edits, edits_of, video_ids
from cluster.results.newest import database

if TYPE_CHECKING:
    import duckdb


ALIKE = "lower(nfc_normalize(id))"
"""The same for two ids that a file system may take for one."""


@dataclass(frozen=True)
class Scan:
    """What a manifest holds.

    Args:
        counts: how many edits each row has, [videos].
        repeated: the numbers of the rows whose `video_id` a row before them has, ascending.
        alike: two ids of videos, or of edits of one video, whose files may be the same one; the
            first such ones.
    """

    counts: np.ndarray
    repeated: np.ndarray
    alike: tuple[str, str] | None = None

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
    alike: tuple[str, str] | None = None
    with database() as found:
        found.execute("CREATE TABLE ids (row BIGINT, id UHUGEINT, alike UHUGEINT)")
        for table in files.tables(["video", "video_id", "edits"]):
            numbers = np.arange(rows, rows + table.num_rows)
            ids = pa.table({"row": numbers, "id": pa.array(video_ids(table), pa.string())})
            found.register("batch", ids)
            found.execute(
                f"INSERT INTO ids SELECT row, md5_number(id), md5_number({ALIKE}) FROM batch "
                "WHERE id != ''"
            )
            found.unregister("batch")
            edits = edits_of(table)
            alike = alike or _alike_edits(found, edits)
            counts.append(edits.counts)
            rows += table.num_rows
        again = found.execute(
            "SELECT row FROM ids JOIN (SELECT id, min(row) AS first FROM ids GROUP BY id "
            "HAVING count(*) > 1) AS repeated USING (id) WHERE row > first ORDER BY row"
        ).fetchnumpy()["row"]
        alike = _alike_videos(found, files) or alike
    together = np.concatenate(counts) if counts else np.zeros(0, np.int64)
    return Scan(together, again.astype(np.int64), alike)


def _alike_edits(found: duckdb.DuckDBPyConnection, edits: Edits) -> tuple[str, str] | None:
    """Two given ids of edits of one row that differ in letter case only."""
    kind = edits.values.type
    if not pa.types.is_struct(kind) or kind.get_field_index("edit_id") < 0:
        return None
    given = edits.values.field("edit_id")
    if not (pa.types.is_string(given.type) or pa.types.is_large_string(given.type)):
        return None
    found.register("batch", pa.table({"row": edits.rows, "id": given}))
    pairs = found.execute(
        f"SELECT min(id), max(id) FROM batch WHERE id IS NOT NULL GROUP BY row, {ALIKE} "
        "HAVING min(id) != max(id) ORDER BY row LIMIT 1"
    ).fetchall()
    found.unregister("batch")
    return pairs[0] if pairs else None


def _alike_videos(found: duckdb.DuckDBPyConnection, files: ManifestFiles) -> tuple[str, str] | None:
    """Two ids of videos that differ in letter case only."""
    pairs = found.execute(
        "SELECT arg_min(row, id), arg_max(row, id) FROM ids GROUP BY alike "
        "HAVING min(id) != max(id) ORDER BY min(row) LIMIT 1"
    ).fetchall()
    if not pairs:
        return None
    names: dict[int, str] = {}
    rows = 0
    for table in files.tables(["video", "video_id"]):
        for row in pairs[0]:
            if rows <= row < rows + table.num_rows:
                names[row] = str(video_ids(table.slice(row - rows, 1))[0])
        rows += table.num_rows
    first, second = sorted(pairs[0])
    return names[first], names[second]
