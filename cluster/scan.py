"""What must be known of a whole manifest before its rows stream: which ids repeat, and how many.

Only the columns of the ids are read, batch by batch: 10^7 rows come to 160 MB of hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cluster.results.ledger import Keys
from cluster.rows import default_video_id
from cluster.stages.blocks import row_digest
from cluster.stages.check import CheckRows
from pipeline.storage import open_file


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


def scan_manifest(files: Sequence[str]) -> Scan:
    """Read the ids of a manifest's rows, in the order of its files."""
    videos = edits = 0
    hashes = []
    for rows in _batches(files, ["video", "video_id", "edits.list.element.edit_id", "edits"]):
        videos += len(rows)
        edits += sum(max(1, len(row["edits"] or ())) for row in rows)
        hashes.append(Keys.of(filter(None, map(_video_id, rows))).hashes)
    every = np.sort(np.concatenate(hashes)) if hashes else Keys.of([]).hashes
    repeated = Keys(every[1:][every[1:] == every[:-1]])
    firsts: dict[str, str] = {}
    if len(repeated):
        for rows in _batches(files):
            for row in rows:
                video_id = _video_id(row)
                if video_id and video_id not in firsts and video_id in repeated:
                    firsts[video_id] = row_digest(row)
    return Scan(videos, edits, firsts)


def count_pending(files: Sequence[str], check: CheckRows) -> int:
    """How many results a run would give: the edits that are pending, and what is refused.

    Args:
        check: the job's row check; it must be one that no row has passed yet.
    """
    pending = 0
    for rows in _batches(files):
        pending += sum(max(1, len(video.edits)) for video in map(check.work, rows) if video)
    return pending


def _batches(files: Sequence[str], columns: list[str] | None = None) -> Iterator[list[Any]]:
    for uri in files:
        with open_file(uri) as stream:
            file = pq.ParquetFile(stream)
            names = columns and [c for c in columns if c.split(".")[0] in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=8192, columns=names):
                yield batch.to_pylist()


def _video_id(row: dict[str, Any]) -> str | None:
    given, video = row.get("video_id"), row.get("video")
    if isinstance(given, str):
        return given
    return default_video_id(video) if isinstance(video, str) and video.strip() else None
