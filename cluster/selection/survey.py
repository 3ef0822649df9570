"""What a run of a part of a manifest would do, found by looking at the manifest's rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from cluster.manifest import ManifestFiles
from cluster.selection.entries import names_of
from cluster.stages.blocks import VideoWork, manifest_rows
from cluster.stages.check import CheckRows


def pending_videos(files: ManifestFiles, check: CheckRows) -> frozenset[str]:
    """The ids of the videos with pending edits.

    Args:
        check: as for `cluster.scan.count_pending`.
    """
    works = (work for table in files.tables() for work, _ in check.work_of(table))
    return frozenset(str(video.video_id) for video in works if video.pending)


def names(files: ManifestFiles) -> Iterator[tuple[str, list[str | None]]]:
    """The `video_id` of each row of a manifest that has one, and its `edit_id`s."""
    for table in files.tables(["video", "video_id", "edits"]):
        for video_id, edit_ids in map(names_of, manifest_rows(table)):
            if video_id is not None:
                yield video_id, edit_ids


@dataclass
class Survey:
    """What a run of a part of a manifest would do.

    Args:
        videos: that have pending edits.
        pending: edits that a run would make.
        refused: how many results the row check would refuse, by error code.
        done: edits that are done.
        ids: of the videos with pending edits.
        rows: the manifest's rows with them; None without a limit, where a run reads the manifest.
    """

    videos: int = 0
    pending: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    done: int = 0
    ids: list[str] = field(default_factory=list)
    rows: pa.Table | None = None

    @property
    def edits(self) -> int:
        """Results that the run gives."""
        return self.pending + sum(self.refused.values())


def survey(files: ManifestFiles, check: CheckRows, limit: int | None = None) -> Survey:
    """Look at a manifest's rows in their order.

    Args:
        check: as for `cluster.scan.count_pending`; its selection is what is looked at.
        limit: stop at so many videos with pending edits. Rows without one, which are done or
            refused, are not among them then: a limited run goes on where the last one stopped.
    """
    found, tables = Survey(), list[pa.Table]()
    for table in files.tables():
        taken = []
        for place, row, work in check.look(table):
            if limit is not None and not (work and work.pending):
                continue
            found.done += check.selected(row) - (max(1, len(work.edits)) if work else 0)
            if work:
                taken.append(place)
                _add(found, work)
            if found.videos == limit:
                break
        if limit is not None:
            tables.append(table.take(pa.array(taken, pa.int64())))
            if found.videos == limit:
                break
    if tables:
        found.rows = pa.concat_tables(tables)
    return found


def _add(found: Survey, work: VideoWork) -> None:
    refused = [work.error_code] if work.error_code and not work.edits else []
    for edit in work.edits:
        if code := work.error_code or edit.error_code:
            refused.append(code)
    found.refused.update(str(code) for code in refused)
    if work.pending:
        found.videos += 1
        found.ids.append(str(work.video_id))
        found.pending += sum(edit.pending for edit in work.edits)
