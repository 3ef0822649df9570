"""What all commands share: one application, its exit statuses, and how problems are shown."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from jobs.errors import UserError, WrongOption
from jobs.options import Version
from jobs.stopping import MESSAGE, stops_by_signal
from pipeline.redaction import redacted, say

EXIT_DONE = 0
EXIT_CANNOT_RUN = 1
EXIT_USAGE = 2
EXIT_SOME_FAILED = 3


class Commands(TyperGroup):
    """The commands, each of which returns its exit status.

    A problem that a user can repair is a message here, for all commands, and not a traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        from pipeline.storage.seconds import wrong_seconds

        with stops_by_signal() as stop:
            try:
                if wrong := wrong_seconds():
                    raise UserError(wrong)
                status = super().invoke(ctx)
            except KeyboardInterrupt as stopped:
                say(str(stopped) or MESSAGE, problem=True)
                status = stop.status
            except Exception as error:
                from cluster.job import CannotRun
                from pipeline.errors import StorageFailed, Unreadable

                if not isinstance(error, UserError | CannotRun | Unreadable | StorageFailed):
                    if isinstance(message := getattr(error, "message", None), str):
                        vars(error)["message"] = redacted(message)  # Typer's own: wrong usage
                    raise
                say(f"error: {error}", problem=True)
                status = EXIT_USAGE if isinstance(error, WrongOption) else EXIT_CANNOT_RUN
        raise typer.Exit(status)


app = typer.Typer(
    cls=Commands,
    help="Edit videos by the dataset: invert each video once, edit it many times.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def retake(version: Version = False) -> None:
    pass


def status_of(failed: int) -> int:
    """The exit status of a command that came to its end."""
    return EXIT_SOME_FAILED if failed else EXIT_DONE
