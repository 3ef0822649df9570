"""Which videos and edits of a manifest a run takes, by their ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from cluster.rows import default_id_of, default_video_id
from cluster.stages.blocks import EditWork, VideoWork

Entry = tuple[str, str | None]
"""A `video_id`, and an `edit_id` or None for all edits of the video. `*` stands for any text; no id
holds it."""


class Selection:
    """Takes the edits that one of its entries names.

    Args:
        entries: at least one.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.exact: dict[str, set[str | None]] = {}
        self.patterns: list[tuple[Entry, re.Pattern[str], re.Pattern[str] | None]] = []
        for video, edit in entries:
            if "*" in video or "*" in (edit or ""):
                edits = None if edit is None else _pattern(edit)
                self.patterns.append(((video, edit), _pattern(video), edits))
            else:
                self.exact.setdefault(video, set()).add(edit)

    def takes(self, video_id: str | None, edit_id: str | None) -> bool:
        """Whether an edit is taken; one without an id is where all edits of its video are."""
        return next(self.matches(video_id, edit_id), None) is not None

    def takes_video(self, video_id: str | None) -> bool:
        """Whether something of a video may be taken."""
        if video_id is None:
            return False
        return video_id in self.exact or any(v.fullmatch(video_id) for _, v, _ in self.patterns)

    def matches(self, video_id: str | None, edit_id: str | None) -> Iterator[Entry]:
        """The entries that name an edit."""
        if video_id is None:
            return
        exact = self.exact.get(video_id, ())
        yield from ((video_id, edit) for edit in dict.fromkeys((None, edit_id)) if edit in exact)
        for entry, video, edit in self.patterns:
            if video.fullmatch(video_id) and (
                edit is None or (edit_id is not None and edit.fullmatch(edit_id))
            ):
                yield entry

    def entries(self) -> list[Entry]:
        exact = [(video, edit) for video, edits in self.exact.items() for edit in edits]
        return [*exact, *(entry for entry, _, _ in self.patterns)]

    def part(self, work: VideoWork) -> VideoWork | None:
        """What is taken of a video's work; None where nothing is.

        It knows how many pending edits are left out: they still need the video's trajectory.
        """
        if not work.edits:
            return work if self.takes(work.video_id, None) else None
        taken = tuple(edit for edit in work.edits if self.takes(work.video_id, own_id(edit)))
        left = sum(edit.pending for edit in work.edits) - sum(edit.pending for edit in taken)
        return replace(work, edits=taken, left_pending=work.left_pending + left) if taken else None


def names_of(row: Mapping[str, Any]) -> tuple[str | None, list[str | None]]:
    """The `video_id` of a manifest row and the `edit_id`s of its edits; None where it has none.

    The row need not be a good one.
    """
    given, video = row.get("video_id"), row.get("video")
    if given is None and isinstance(video, str) and video.strip():
        given = default_video_id(video)
    edits = row.get("edits")
    return given if isinstance(given, str) else None, [
        _edit_name(edit) for edit in (edits if isinstance(edits, list) else ())
    ] or [None]


def _edit_name(edit: Any) -> str | None:
    if not isinstance(edit, Mapping):
        return None
    given = edit.get("edit_id")
    return default_id_of(edit) if given is None else given if isinstance(given, str) else None


def own_id(edit: EditWork) -> str | None:
    """The id without what `cluster.rows.EditFailure` adds to that of a repeated edit."""
    return edit.edit_id and edit.edit_id.split(":")[0]


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL)
