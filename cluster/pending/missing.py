"""Videos and masks that are certainly not there are refused before a group waits for them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum, auto

from cluster.rows import NO_FILES
from cluster.stages.blocks import EditWork, VideoWork
from pipeline.errors import ErrorCode, RowError
from pipeline.locations import is_local, is_web, links
from pipeline.storage import check_file

NO_ANSWER = (ErrorCode.STORAGE_UNREACHABLE, ErrorCode.STORAGE_BUSY)
LOOK_AT_ONCE = 32
"""Videos that are looked for side by side: object storage takes some 50 ms for each."""


class Places(Enum):
    """Where a run looks for videos before groups do."""

    NOWHERE = auto()
    OBJECTS = auto()
    """In object storage: the driver sees there what every node sees."""
    ALL = auto()
    """On this machine, too, which then has to be the only one."""


@dataclass(frozen=True)
class MissingVideos:
    """Looks for videos and masks; may be asked from several threads.

    A store that does not answer is asked nothing more: the groups may reach it where the driver
    does not, and its rows shall not wait until each look has failed.
    """

    places: Places
    silent: set[str] = field(default_factory=set)

    def looked_for(self, work: VideoWork) -> VideoWork:
        """A video's work with the error of what is certainly not there: itself, or edits' masks."""
        if not work.pending:
            return work
        if error := self.error_of(str(work.video)):
            return replace(work, error_code=error.code, error=error.message)
        masks = {edit.mask for edit in work.edits if edit.pending and edit.mask}
        errors = {mask: self.error_of(mask) for mask in masks if mask not in NO_FILES}
        if not any(errors.values()):
            return work

        def looked_for(edit: EditWork) -> EditWork:
            error = errors.get(str(edit.mask)) if edit.pending else None
            return without_mask(edit, error) if error else edit

        return replace(work, edits=tuple(map(looked_for, work.edits)))

    def error_of(self, uri: str) -> RowError | None:
        """The error of a file that is certainly not there; None for any other.

        What else may be wrong is left to the groups, who try again where it may pass. Web servers
        are not asked: each refuses many small questions in its own way.
        """
        store = "/".join(uri.split("/", 3)[:3])
        if not self._is_looked_at(uri) or store in self.silent:
            return None
        try:
            check_file(uri, patient=False)
        except RowError as error:
            if error.code == ErrorCode.VIDEO_NOT_FOUND:
                return error
            if error.code in NO_ANSWER and not is_local(uri):
                self.silent.add(store)
        return None

    def _is_looked_at(self, uri: str) -> bool:
        if self.places is Places.NOWHERE or len(links(uri)) > 1 or is_web(uri):
            return False
        return self.places is Places.ALL or not is_local(uri)


def without_mask(edit: EditWork, error: RowError) -> EditWork:
    """An edit that is refused, since its mask is not there or cannot be had."""
    code = ErrorCode.BAD_MASK if error.code == ErrorCode.VIDEO_NOT_FOUND else error.code
    return replace(edit, error_code=code, error=f"the mask {error.message}")
