"""The command `retake`. Torch and Ray are imported where a command needs them, so help is quick."""

from __future__ import annotations

import sys

# isort: off
# ruff: noqa: F401 - in the order of the help
from jobs.commands import work
from jobs.commands import plan
from jobs.commands import manifest
from jobs.commands import output
from jobs.commands import export
from jobs.commands import submission
from jobs.commands import watching
from jobs.commands import logs
from jobs.commands import deployment
from jobs.commands import dashboard

# isort: on
from jobs.commands.app import EXIT_CANNOT_RUN, EXIT_DONE, EXIT_SOME_FAILED, EXIT_USAGE, app
from pipeline.redaction import log_error, safe_tracebacks

__all__ = ["EXIT_CANNOT_RUN", "EXIT_DONE", "EXIT_SOME_FAILED", "EXIT_USAGE", "app", "main"]


def main() -> None:
    safe_tracebacks()
    try:
        app()
    except Exception as error:  # typer has a hook of its own for these
        log_error(error)
        sys.exit(EXIT_CANNOT_RUN)


if __name__ == "__main__":
    main()
