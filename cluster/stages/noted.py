"""What an owner notes of the requests to its group, and of the edits that come of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cluster.events.record import Happened, Note
from cluster.ranks.messages import Answer, EditVideo, EncodePrompts, InvertVideo, Request
from pipeline.errors import ErrorCode
from pipeline.records import EditResult


class RequestEvents:
    """The events of one request, from its beginning on.

    Args:
        note: takes them.
    """

    def __init__(self, note: Note, request: Request) -> None:
        self._note = note
        self._of_video = not isinstance(request, EncodePrompts)
        self._about = _about(request)
        self._failed: tuple[ErrorCode, str] | None = None
        if self._of_video:
            note(Happened.VIDEO_BEGUN, **self._about)

    def failed_try(self, code: ErrorCode, reason: str) -> None:
        """The group is asked again, unless all tries are used up."""
        self._failed = code, reason

    def trying(self) -> None:
        """The group is about to be asked."""
        if self._failed:
            code, reason = self._failed
            self._note(Happened.RETRY, code=code, message=reason, **self._about)
        self._failed = None

    def answered(self, answer: Answer, tries: int) -> None:
        about = {**self._about, "tries": tries, "seconds": round(answer.seconds, 3)}
        if answer.error_code:
            failed = Happened.VIDEO_FAILED if self._of_video else Happened.PROMPTS_FAILED
            self._note(failed, code=answer.error_code, message=answer.error, **about)
        else:
            done = Happened.VIDEO_DONE if self._of_video else Happened.PROMPTS_ENCODED
            self._note(done, **about)

    def quarantined(self, code: ErrorCode, text: str, tries: int) -> None:
        """All tries of the request are used up."""
        self._note(Happened.QUARANTINED, code=code, message=text, tries=tries, **self._about)


def note_results(note: Note, results: Iterable[EditResult]) -> None:
    """Note what came of edits."""
    for one in results:
        about: dict[str, Any] = {"video_id": one.video_id, "edit_id": one.edit_id}
        if one.error_code:
            message = _first_line(one.error or "")
            note(Happened.EDIT_FAILED, code=one.error_code, message=message, **about)
        else:
            note(Happened.EDIT_STORED, seconds=round(one.timings.total, 3), **about)


def _about(request: Request) -> dict[str, Any]:
    """What a request is about, as fields of an event."""
    if isinstance(request, EncodePrompts):
        return {"counts": {"prompts": len(request.prompts)}}
    if not isinstance(request, InvertVideo | EditVideo):  # no other goes to a group in a job
        return {}
    about: dict[str, Any] = {"video_id": request.video.video_id, "part": "inversion"}
    if isinstance(request, EditVideo):
        about |= {"part": "edits", "edits": [str(edit.edit_id) for edit in request.video.edits]}
    return about


def _first_line(text: str) -> str:
    return next(iter(text.splitlines()), "")
