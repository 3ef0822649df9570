"""At most one request at a time, of all groups of a node, that may bring the node down.

A request whose group's owner was lost goes alone in its group. Where the whole node was lost, it is
one of many: of each group of the node there were two. If all of them went at once again, the one
that brings the node down would take the others along once more, and nobody could tell which it is.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POLL_S = 0.5


@contextmanager
def alone_on_the_node(job: str, wait: Callable[[float], None]) -> Iterator[None]:
    """Wait until no other process of this node is in here for the same job, and hold it.

    What is held has no file: the system takes it back however the process ends. A system that has
    no such names (Linux has) holds nobody back.

    Args:
        job: tells jobs apart.
        wait: waits so many seconds; it may raise.
    """
    name = hashlib.sha256(f"{os.getuid()} {job}".encode()).hexdigest()[:32]
    with socket.socket(socket.AF_UNIX) as held:
        while True:
            try:
                held.bind(f"\0retake-{name}")
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:  # the system has no such names: none waits
                    break
                wait(POLL_S)
        yield
