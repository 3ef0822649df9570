"""The options that several commands have."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from pipeline import __version__
from pipeline.redaction import say


def count(text: str, least: int = 1) -> int:
    """A whole number, 1 or more; or the message that says so."""
    if re.fullmatch(r"[0-9]+", str(text)) and int(text) >= least:
        return int(text)
    raise typer.BadParameter(f"is {text!r}; expected a whole number, {least} or more")


def count_or_none(text: str) -> int:
    """A whole number, 0 or more; or the message that says so."""
    return count(text, 0)


PACKAGES = ("torch", "diffusers", "transformers", "ray")
JobFile = Annotated[str, typer.Argument(help="The job file (YAML).", metavar="JOB")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a value of the job; may be repeated."),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ID",
        help="Only these: video_id or video_id/edit_id, with * for any text; or @FILE, or a CSV, "
        "Parquet or text file with the columns video_id and, if any, edit_id and pick (rows with "
        "pick 'reject' are left out). May be repeated.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        parser=count, metavar="N", help="Only the first N videos that have something pending."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
Wait = Annotated[
    bool,
    typer.Option("--wait", help="Wait for another run that writes to the output folder."),
]
RetryQuarantined = Annotated[
    bool,
    typer.Option(
        "--retry-quarantined",
        help="Try edits again that an earlier run has quarantined, since their video killed or "
        "hung its group on every try.",
    ),
]
RetryFailed = Annotated[
    bool,
    typer.Option(
        "--retry-failed",
        help="Take only edits that failed or were quarantined before; not those that are new.",
    ),
]
Codes = Annotated[
    list[str] | None,
    typer.Option(
        "--code", metavar="CODE", help="Only failed edits with this error code; may be repeated."
    ),
]
Output = Annotated[str, typer.Argument(help="The output folder of a job, a path or URI.")]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]


def show_version(wanted: bool) -> None:
    """Print what runs here, without importing it, and stop."""
    if wanted:
        found = ", ".join(f"{package} {_version(package)}" for package in PACKAGES)
        say(f"retake {__version__}, {found}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=show_version, is_eager=True, help="Show it and exit."),
]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
