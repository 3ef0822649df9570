"""A rank program without a model whose works wait for each other: they end only side by side.

The work of a video on "the accelerator" ends when the next video is read; the writing of a video's
edits ends when the next one's work on the accelerator has begun. Where one of these waits in vain,
the request fails.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future

from cluster.ranks.channel import Arrived, Beside, Channel, Handler
from cluster.ranks.messages import EditVideo, Start, parse_request
from cluster.ranks.overlap import Overlap
from cluster.ranks.process import serve
from pipeline.errors import ErrorCode, RowError
from pipeline.records import EditResult, InversionResult, VideoSpec

VIDEOS = 4
PATIENCE_S = 20.0


class Timeline:
    """What happened, by name, with waiting for it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.events: list[str] = []

    def add(self, event: str) -> None:
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def wait_for(self, event: str) -> None:
        with self.changed:
            if not self.changed.wait_for(lambda: event in self.events, PATIENCE_S):
                raise RowError(ErrorCode.INTERNAL, f"{event} did not come: {self.events}")


def prepare(_: Start, __: Channel) -> Handler:
    timeline, overlap = Timeline(), Overlap()
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    def reading(video: VideoSpec) -> Callable[[], int]:
        def read() -> int:
            timeline.add(f"{video.video} is read")
            return int(video.video)

        return read

    def edit(
        video: VideoSpec, inversion: InversionResult, number: int = 0
    ) -> list[Future[EditResult] | None]:
        number = overlap.read(video.video, reading(video))
        timeline.add(f"{number} is at work")
        if number + 1 < VIDEOS:
            timeline.wait_for(f"{number + 1} is read")

        def write(edit_id: str | None) -> EditResult:
            if number + 1 < VIDEOS:
                timeline.wait_for(f"{number + 1} is at work")
            return EditResult(edit_id=edit_id, output=str(rank))

        places = list(enumerate(video.edits))
        return [
            overlap.beside(lambda one=one: write(one.edit_id)) if place % ranks == rank else None
            for place, one in places
        ]

    return {
        EditVideo: edit,
        Beside: overlap.begun,
        Arrived: lambda request, at_work: overlap.read_ahead(
            request.video.video, reading(request.video), at_work
        ),
    }


if __name__ == "__main__":
    serve(prepare, parse_request)
