"""The names of submitted jobs, and what an argument of a command is that may be one."""

from __future__ import annotations

import os
import re
import secrets

ID = re.compile(r"retake-.+-[0-9a-f]{8}|raysubmit_.+")
"""The ids of jobs: of those that `retake submit` sends, and of Ray's own."""
LONGEST_NAME = 40


def new_job_id(name: str) -> str:
    """An id for a job that is sent: `retake-<name>-<8 hex>`.

    Args:
        name: of the job; what is no letter, digit, `.`, `_` or `-` in it is left out.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:LONGEST_NAME].strip("-.")
    return f"retake-{plain or 'job'}-{secrets.token_hex(4)}"


def is_job_id(text: str) -> bool:
    """Whether an argument names a submitted job, and not an output folder.

    It does where it looks as ids do, holds no `/`, and no local folder has that name.
    """
    return bool(ID.fullmatch(text)) and "/" not in text and not os.path.isdir(text)
