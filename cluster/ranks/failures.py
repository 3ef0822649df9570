"""What can go wrong with a request and with a rank group, as the owner and as a rank see it."""

from __future__ import annotations

import os
import traceback

from cluster.ranks.messages import Answer
from pipeline.errors import ErrorCode, RowError, StorageFailed
from pipeline.model.memory import is_out_of_memory
from pipeline.redaction import log_error
from pipeline.storage.trouble import is_of_storage

ACCELERATOR = ("CUDA", "cuDNN", "CUBLAS", "NCCL")
"""What stands in the text of an error of the accelerator that torch raises as a RuntimeError."""
LOGGED = (ErrorCode.OUT_OF_MEMORY, ErrorCode.STORAGE, ErrorCode.INTERNAL)
"""Codes of errors that say more in the log of their rank: where they were raised."""


class RankGroupFailed(Exception):
    """The group could not answer; it has been killed. The next request starts another one.

    Attributes:
        charged: whether this request may be the one that brought the group down, and no other.
    """

    charged = True


class RankDied(RankGroupFailed):
    """A rank's process ended."""


class DeadlinePassed(RankGroupFailed):
    """The group made no progress, or was not ready in time."""


class GroupCannotStart(Exception):
    """A rank said why it cannot work at all (a checkpoint that does not load, say)."""

    charged = True


def failure(error: Exception, *, together: bool = True) -> Answer:
    """The answer to a request whose handler raised.

    Args:
        together: whether the ranks of the group may wait for this one: it worked with them.
    """
    if isinstance(error, RowError):
        return Answer(error_code=error.code, error=error.message, needs_restart=error.needs_restart)
    own = as_row_error(error)
    needs_restart = (together and several_ranks()) or own.needs_restart
    return Answer(error_code=own.code, error=own.message, needs_restart=needs_restart)


def as_row_error(error: Exception) -> RowError:
    """Any other exception as the error of a row, with the place where it was raised."""
    log_error(error)
    if isinstance(error, StorageFailed):
        return RowError(error.trouble.code, str(error))
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
    return RowError(_code(error), text, breaks_the_process(error))


def several_ranks() -> bool:
    """Whether this rank is one of several.

    After an error these may have left their collectives at different places, and cannot go on. A
    RowError they raise together.
    """
    return int(os.environ["WORLD_SIZE"]) > 1


def breaks_the_process(error: Exception) -> bool:
    """Whether every further call to the accelerator fails, as after most of its errors."""
    return _is_of_accelerator(error) and _code(error) != ErrorCode.OUT_OF_MEMORY


def _code(error: Exception) -> ErrorCode:
    if is_out_of_memory(error):
        return ErrorCode.OUT_OF_MEMORY
    if is_of_storage(error):
        return ErrorCode.STORAGE
    return ErrorCode.INTERNAL


def _is_of_accelerator(error: Exception) -> bool:
    if type(error).__name__ == "AcceleratorError":
        return True
    return isinstance(error, RuntimeError) and any(name in str(error) for name in ACCELERATOR)
