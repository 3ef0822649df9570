"""Keeps Ray's own messages from drowning the job's; a user's own setting of any of these stands.

Importing this module must come before `import ray`.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# A thread of Ray Data that outlives the connection would connect again, to any cluster it finds.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# Actors of the graph wait for their rank processes, so more of them than cores is as it should be.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started on node")


@contextmanager
def held_back() -> Iterator[None]:
    """Keeps what native code writes to standard error out of sight.

    What stops a run is raised as well, with the way out, so nothing is lost with it.
    """
    sys.stderr.flush()
    with open(os.devnull, "wb") as nowhere:
        real = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
