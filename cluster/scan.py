"""What must be known of a whole manifest before its rows stream: which ids repeat, and how many.

Only the columns that give ids are read, batch by batch: 10^7 rows come to 160 MB of hashes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.layout.work import Amount
from cluster.manifest import ManifestFiles
from cluster.results.ledger import Keys
from cluster.results.schema import plain_values
from cluster.rows import default_video_id
from cluster.stages.blocks import row_digest
from cluster.stages.check import CheckRows


@dataclass(frozen=True)
class Scan:
    """What a manifest holds.

    Args:
        videos, edits: how many rows, and how many edits in them.
        repeated: for each `video_id` that several rows have, the digest of the first of these.
    """

    videos: int
    edits: int
    repeated: dict[str, str]


def scan_manifest(files: ManifestFiles) -> Scan:
    """Read the ids of a manifest's rows, in the order of its files."""
    videos = edits = 0
    hashes = []
    for table in files.tables(["video", "video_id", "edits"]):
        videos += table.num_rows
        counts = pc.fill_null(pc.list_value_length(table["edits"]), 0)
        edits += pc.sum(pc.max_element_wise(counts, 1)).as_py()
        hashes.append(Keys.of(filter(None, _video_ids(table))).hashes)
    every = np.sort(np.concatenate(hashes)) if hashes else Keys.of([]).hashes
    repeated = Keys(every[1:][every[1:] == every[:-1]])
    firsts: dict[str, str] = {}
    if len(repeated):
        for table in files.tables():
            for place, video_id in enumerate(_video_ids(table)):
                if video_id and video_id not in firsts and video_id in repeated:
                    firsts[video_id] = row_digest(table, place)
    return Scan(videos, edits, firsts)


def count_pending(files: ManifestFiles, check: CheckRows) -> tuple[int, Amount]:
    """How many results a run would give, those of refused edits too; and what groups would do.

    Args:
        check: the job's row check; it must be one that no row has passed yet.
    """
    results = videos = edits = 0
    for table in files.tables():
        for video, _ in check.work_of(table):
            results += max(1, len(video.edits))
            if video.pending:
                videos += 1
                edits += sum(edit.pending for edit in video.edits)
    return results, Amount(videos, edits)


def _video_ids(table: pa.Table) -> list[str | None]:
    none = [None] * table.num_rows
    given, videos = (
        plain_values(table[name]) if name in table.column_names else none
        for name in ("video_id", "video")
    )
    return [_video_id(one, video) for one, video in zip(given, videos, strict=True)]


def _video_id(given: object, video: object) -> str | None:
    if isinstance(given, str):
        return given
    return default_video_id(video) if isinstance(video, str) and video.strip() else None
