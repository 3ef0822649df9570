"""What Ray Data says of blocks that it gave up: it drops them, with a line in its log.

The rows come back missing, and the next wave has them. Why they were lost is wanted where it goes
on and on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pyarrow as pa

from cluster.connection import reason
from cluster.results.schema import SCHEMA
from cluster.stages.blocks import rebuilt, work_of
from pipeline.errors import ErrorCode
from pipeline.records import EditResult

LOSSES = 5
"""A row that was lost so often is given up, and never before its tries are used up. An owner that
lives answers for its rows itself, and counts their tries: this is for what no owner sees."""
LOGGER = "ray.data._internal.execution.streaming_executor_state"
"""Ray Data has no other way to learn of a block that `max_errored_blocks` let pass."""


class LostBlocks(logging.Handler):
    """Counts them, and keeps the last reason.

    Attributes:
        count: of this run.
        error: the last one; None where there was none.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.count = 0
        self.error: Exception | None = None

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, Exception):
            self.count += 1
            self.error = error


@contextmanager
def lost_blocks() -> Iterator[LostBlocks]:
    """Listens in the block."""
    logger, handler = logging.getLogger(LOGGER), LostBlocks()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR)
    logger.propagate = False  # a traceback on the screen says nothing to a user
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def given_up(rows: pa.Table, run: str, lost: LostBlocks, times: int) -> pa.Table:
    """The results of rows that went down with their process or node each time.

    Args:
        rows: columns of `VideoWork`, and the passthrough columns.
        run: names the run in the results.
        times: how often they were lost.
    """
    why = reason(lost.error) if lost.error else "nobody knows why"
    error = f"lost {times} times with the process or node at work on it; the last time: {why}"
    results, origins = [], []
    for origin, video in enumerate(work_of(rows)):
        for edit in video.edits:
            results.append(
                EditResult(
                    video_id=video.video_id,
                    edit_id=edit.edit_id,
                    video=video.video,
                    prompt=edit.prompt,
                    source_prompt=video.source_prompt,
                    status="quarantined",
                    error_code=ErrorCode.RANK_DIED,
                    error=error,
                    attempts=times,
                    fingerprint=edit.fingerprint,
                    run=run,
                    finished_at=datetime.now(UTC),
                )
            )
            origins.append(origin)
    return rebuilt(rows, results, origins, SCHEMA)
