"""What Ray Data says of blocks that it gave up: it drops them, with a line in its log.

The rows come back missing, and the next wave has them. Why they were lost is wanted where it goes
on and on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from cluster.connection import reason
from cluster.output.attempts import Attempts
from cluster.results.schema import SCHEMA
from cluster.stages.blocks import rebuilt, result_of, work_of
from cluster.stages.score import ScoreEdits
from pipeline.errors import ErrorCode
from pipeline.records import EditResult

LOSSES = 5
"""A row that was lost so often is given up, and never before its tries are used up. An owner that
lives answers for its rows itself, and counts their tries: this is for what no owner sees."""
FUTILE_WAVES = 3
"""So many waves in a row that brought nothing end the job."""
LOGGER = "ray.data._internal.execution.streaming_executor_state"
"""Ray Data has no other way to learn of a block that `max_errored_blocks` let pass."""


class LostBlocks(logging.Handler):
    """Counts them, and keeps the last reason.

    No error itself is kept: its traceback holds Ray Data's actors, which live on with what they
    reserve as long as this process can reach them.

    Attributes:
        count: of this run's editing.
        why: the last reason; empty where there was none.
        of_scoring: the same of its scoring, which runs beside it.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.count = 0
        self.why = self.of_scoring = ""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, Exception):
            return
        if ScoreEdits.__name__ in record.getMessage():  # the operator that lost it
            self.of_scoring = reason(error)
        else:
            self.add(error)

    def add(self, error: Exception) -> None:
        """Something was lost by it."""
        self.count += 1
        self.why = reason(error)


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


class Futile:
    """Counts the waves in a row that brought nothing: no result, and no try that counts.

    A row that ends its owner each time is quarantined once its tries are used up. Until then waves
    with it alone have no result, and are not for nothing.

    Args:
        attempts: of the run.
    """

    def __init__(self, attempts: Attempts) -> None:
        self.attempts = attempts
        self.waves = 0
        self._tries = 0

    def one_too_many(self, fruitful: bool) -> bool:
        """Note a wave, and whether it had results.

        Returns:
            Whether the job is to end.
        """
        before = self._tries
        if not fruitful:
            self._tries = self.attempts.alone()
        self.waves = 0 if fruitful or self._tries > before else self.waves + 1
        return self.waves >= FUTILE_WAVES


def given_up(rows: pa.Table, run: str, lost: LostBlocks, times: int) -> pa.Table:
    """The results of rows that went down with their process or node each time.

    Args:
        rows: columns of `VideoWork`, and the passthrough columns.
        run: names the run in the results.
        times: how often they were lost.
    """
    why = lost.why or "nobody knows why"
    error = (
        f"lost {times} times with the process or node at work on it; the last time: {why}. See "
        "that its node has memory to spare; --retry-quarantined tries it again"
    )
    known = EditResult(error_code=ErrorCode.RANK_DIED, error=error, attempts=times)
    results, origins = [], []
    for origin, video in enumerate(work_of(rows)):
        results += [result_of(video, edit, known, run) for edit in video.edits]
        origins += [origin] * len(video.edits)
    return rebuilt(rows, results, origins, SCHEMA)


def all_lost(waves: int, held: str, why: str) -> str:
    """Why a run ends whose waves bring nothing.

    Args:
        waves: so many in a row.
        held: why groups are broken that hold the rest; empty where none do.
        why: the last reason of Ray's.
    """
    if held:
        return f"a rank group could not start: {held}"
    return (
        f"Ray lost all of the job's work {waves} times in a row: {why or 'no reason is known'}. "
        "The results so far are stored; look for what ended it (memory, a node that left, packages "
        "that a node lacks), and run the same command again to go on"
    )
