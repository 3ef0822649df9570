"""Keeps Ray's own messages from drowning the job's; a user's own setting of any of these stands.

Importing this module must come before `import ray`.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# Actors of the graph wait for their rank processes, so more of them than cores is as it should be.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started on node")


@contextmanager
def held_back() -> Iterator[None]:
    """Keeps what native code writes to standard error, and shows it only if the block fails."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        real = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(real, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
