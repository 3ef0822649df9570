"""What a run of a manifest, or of a part of one, would do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.manifest import ManifestFiles
from cluster.pending.done import DONE, QUARANTINED
from cluster.selection.entries import Selection, names_of
from cluster.stages.blocks import VideoWork, manifest_rows

if TYPE_CHECKING:
    from cluster.pending.rows import PendingRows


def names(files: ManifestFiles) -> Iterator[tuple[str, list[str | None]]]:
    """The `video_id` of each row of a manifest that has one, and its `edit_id`s."""
    for table in files.tables(["video", "video_id", "edits"]):
        for video_id, edit_ids in map(names_of, manifest_rows(table)):
            if video_id is not None:
                yield video_id, edit_ids


@dataclass
class Survey:
    """What a run would do.

    Args:
        videos: that have pending edits.
        pending: edits that a run would make.
        refused: how many results the row check would refuse, by error code.
        done: edits that are done.
        quarantined: edits that are left out, since they were quarantined.
        ids: of the videos with pending edits, where every row was looked at.
    """

    videos: int = 0
    pending: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    done: int = 0
    quarantined: int = 0
    ids: list[str] = field(default_factory=list)

    @property
    def edits(self) -> int:
        """Results that the run gives."""
        return self.pending + sum(self.refused.values())

    def add(
        self,
        row: Mapping[str, Any],
        kinds: np.ndarray,
        work: VideoWork | None,
        selection: Selection | None = None,
    ) -> None:
        """Add one row of the manifest.

        Args:
            kinds: what the results say of its edits.
            work: what is to be done for it.
            selection: what of it counts.
        """
        if kinds.any():
            if selection:
                video_id, edits = names_of(row)
                kinds = kinds[[selection.takes(video_id, edit_id) for edit_id in edits]]
            self.done += int((kinds == DONE).sum())
            self.quarantined += int((kinds == QUARANTINED).sum())
        if work:
            self._add(work)

    def _add(self, work: VideoWork) -> None:
        refused = [work.error_code] if work.error_code and not work.edits else []
        for edit in work.edits:
            if code := work.error_code or edit.error_code:
                refused.append(code)
        self.refused.update(str(code) for code in refused)
        if work.pending:
            self.videos += 1
            self.ids.append(str(work.video_id))
            self.pending += sum(edit.pending for edit in work.edits)


def survey(rows: PendingRows) -> Survey:
    """Look at every row that may have something pending."""
    found = Survey()
    for _, looks in rows.looks():
        for look in looks:
            found.add(look.row, look.kinds, look.work, rows.selection)
    if not rows.selection and rows.limit is None:  # rows that are done were not looked at
        found.done, found.quarantined = map(rows.answered.count, (DONE, QUARANTINED))
    return found


def pending_videos(rows: PendingRows) -> frozenset[str]:
    """The ids of the videos with pending edits."""
    return frozenset(survey(rows).ids)
