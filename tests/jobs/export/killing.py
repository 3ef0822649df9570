"""Exports that are killed: each in a process of its own that ends by SIGKILL at a chosen moment.

    python -m tests.jobs.export.killing OUTPUT TO FORMAT SEED KILLS

A moment is just before or after a file appears or goes, or in the middle of one that is written.
After KILLS of them the command is left alone. Prints how often it was killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from typing import Any

from jobs.export import export, target
from jobs.export.formats import Settings

SHARD_MB = 0.002
MOMENTS = {"webdataset": 20, "huggingface": 20, "lance": 60, "csv": 60}
"""A process dies at one of the first so many moments; a whole export has some more."""


def killed_at(moment: int) -> None:
    """From now on count the moments, and die at one of them."""
    counted = 0

    def now() -> None:
        nonlocal counted
        counted += 1
        if counted == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(action: Callable[..., Any]) -> Callable[..., Any]:
        def both(*values: Any, **named: Any) -> Any:
            now()
            result = action(*values, **named)
            now()
            return result

        return both

    os.replace = around(os.replace)
    os.link = around(os.link)
    os.unlink = os.remove = around(os.unlink)
    target._Hashing.write = around(target._Hashing.write)  # type: ignore[method-assign]


def main(output: str, to: str, format: str, seed: str, kills: str) -> None:
    chance = random.Random(int(seed))
    settings = Settings(format, validation=0.3, shard_mb=SHARD_MB)
    died = 0
    while True:
        moment = chance.randrange(1, MOMENTS[format]) if died < int(kills) else 0
        if not (child := os.fork()):
            killed_at(moment)
            export(output, to, settings)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            break
        if status != -signal.SIGKILL:
            sys.exit(f"ended with {status}")
        died += 1
    print(died)


if __name__ == "__main__":
    main(*sys.argv[1:])
