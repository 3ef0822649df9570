"""Where the files of edits and of their candidates lie, and one row of what came of each candidate.

Ranks share out what is to be made, candidates among it: each answers with an `EditResult` for every
one that it has finished. Their owner puts those of an edit together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace

from pipeline.records import Candidate, EditResult, Forwards
from pipeline.settings import Reconstruction

FOLDER = "candidates"


def edit_output(video_id: str | None, edit_id: str | None) -> str:
    """Where an edit's file lies, relative to the output folder."""
    return f"edits/{video_id}/{edit_id}.mp4"


def mask_output(video_id: str | None, edit_id: str | None) -> str:
    """Where its mask lies."""
    return f"masks/{video_id}/{edit_id}.mp4"


def candidate_output(video_id: str | None, edit_id: str | None, number: int) -> str:
    """Where a candidate's file lies, until the best becomes the edit (`choice.py`)."""
    return f"{FOLDER}/{video_id}/{edit_id}/{number}.mp4"


def candidate_mask(video_id: str | None, edit_id: str | None, number: int) -> str:
    """Where a candidate's mask lies."""
    return f"{FOLDER}/{video_id}/{edit_id}/{number}.mask.mp4"


def gathered(made: Sequence[EditResult], settings: Reconstruction) -> list[EditResult]:
    """What came of each edit, from what came of each of its candidates, in the same order.

    The first that was made is the edit until the best is chosen; where none was, the edit failed as
    the first did.
    """
    if not settings.candidates:
        return list(made)
    by_edit: dict[str | None, list[EditResult]] = {}
    for one in made:
        by_edit.setdefault(one.edit_id, []).append(one)
    return [_of_edit(some, settings) for some in by_edit.values()]


def _of_edit(some: Sequence[EditResult], settings: Reconstruction) -> EditResult:
    first = next((one for one in some if one.output), some[0])
    timings = some[0].timings
    for one in some[1:]:
        timings = timings + one.timings
    return replace(
        first,
        candidates=tuple(_candidate(one, settings) for one in some),
        round=first.candidate // settings.tries,
        forwards=Forwards(
            **{f.name: sum(getattr(one.forwards, f.name) for one in some) for f in fields(Forwards)}
        ),
        timings=timings,
        memory_bytes=max((one.memory_bytes for one in some if one.memory_bytes), default=None),
    )


def _candidate(made: EditResult, settings: Reconstruction) -> Candidate:
    place = made.candidate % settings.tries
    changes = settings.candidates[place - 1].changes() if place else {}
    if any(one.guidance_scale is not None for one in settings.candidates):
        changes.setdefault("guidance_scale", made.guidance_scale)
    return Candidate(
        number=made.candidate,
        changes=json.dumps({**changes, "seed": made.seed} if made.seed is not None else changes),
        output=made.output,
        size_bytes=made.size_bytes,
        mask=made.mask,
        error_code=made.error_code,
        error=made.error,
        metrics=made.metrics,
    )
