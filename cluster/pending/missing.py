"""Videos that are certainly not there: they are refused before a group waits for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from cluster.stages.blocks import VideoWork
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
    """Looks for videos; may be asked from several threads.

    A store that does not answer is asked nothing more: the groups may reach it where the driver
    does not, and its rows shall not wait until each look has failed.
    """

    places: Places
    silent: set[str] = field(default_factory=set)

    def error_of(self, work: VideoWork) -> RowError | None:
        """The error of a video that is certainly not there; None for any other.

        What else may be wrong is left to the groups, who try again where it may pass. Web servers
        are not asked: each refuses many small questions in its own way.
        """
        uri = str(work.video)
        store = "/".join(uri.split("/", 3)[:3])
        if not work.pending or not self._is_looked_at(uri) or store in self.silent:
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
