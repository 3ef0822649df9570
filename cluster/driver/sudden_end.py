"""Says so when the process of a run ends all at once: nobody else does.

Ray's native code exits without a word where a cluster's head has been gone for a minute, and where
this machine's raylet is gone while Ray connects. The system does where memory is out. So a shell of
a few hundred kB waits for the end of a pipe, and has the last word if the run did not.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

MESSAGE = (
    "error: the process of the run ended all at once. Ray ends it where the cluster's head, or the "
    "raylet of this machine, does not answer any more; the system ends it where memory is out. "
    "Results are stored up to its last seconds; see that the cluster is there (`ray status`), and "
    "run the same command again to go on"
)
# It is not for the shell to end by Ctrl-C: the run may take that as a sign to end in order.
WATCH = "trap '' INT TERM HUP; read -r ended || printf '\\n%s\\n' \"$1\" >&2"


@contextmanager
def last_word() -> Iterator[None]:
    """A block whose process does not end in silence."""
    watch = None
    with suppress(OSError):  # a system without this shell: it only informs
        watch = subprocess.Popen(
            ["/bin/sh", "-c", WATCH, "sh", MESSAGE],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
    try:
        yield
    finally:
        if watch is not None and watch.stdin is not None:
            with suppress(OSError):
                watch.stdin.write(b"in order\n")
                watch.stdin.close()
            watch.wait()
