"""A rank as its owner holds it: its process, the socket to it, and its log."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

from pipeline.redaction import safe_end_of

LOG_TAIL = 2000
"""Characters of a log that a message has at most."""
LOG_KEPT = 10_000
"""Characters that the lines in an event are taken from."""
LOG_READ = 1 << 16
"""Bytes that both are taken from."""


@dataclass
class Rank:
    """A process and the owner's end of its socket."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    log: IO[bytes]
    received: bytearray = field(default_factory=bytearray)
    unsent: bytearray = field(default_factory=bytearray)
    at_work: Sequence[int] = ()
    heard_at: float = field(default_factory=time.monotonic)

    def last_log_lines(self, length: int = LOG_TAIL) -> str:
        """The end of what the rank printed, for an error message; without secrets.

        Args:
            length: characters at most.
        """
        self.log.seek(0, os.SEEK_END)
        start = max(0, self.log.tell() - LOG_READ)
        self.log.seek(start)
        text = self.log.read().decode(errors="replace")
        return safe_end_of(text, length, whole=start == 0)
