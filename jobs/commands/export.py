"""The command that writes the pairs of a job for a trainer."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.commands.app import app, status_of
from jobs.options import DryRun, Output, Wait


@app.command()
def export(
    output: Output,
    to: Annotated[str, typer.Argument(metavar="TO", help="A new folder, a path or URI.")],
    format: Annotated[
        str, typer.Option("--format", metavar="NAME", help="webdataset, huggingface, lance or csv.")
    ],
    where: Annotated[
        str,
        typer.Option(
            metavar="SQL",
            help="Only edits for which this holds, in SQL over the columns of the results, such "
            "as `scores.judge.follows >= 3`.",
        ),
    ] = "",
    all_: Annotated[
        bool, typer.Option("--all", help="Edits too that the job's rules did not accept.")
    ] = False,
    validation: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="PART", help="Part of the sources for validation."),
    ] = 0.05,
    shard_mb: Annotated[
        float, typer.Option(min=1e-4, metavar="MB", help="At most so many MB of files a shard.")
    ] = 1000.0,
    license: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Of the dataset, for its card, such as cc-by-4.0; may be changed."
        ),
    ] = "",
    dry_run: DryRun = False,
    wait: Wait = False,
) -> int:
    """Write source, edit, mask and all that is known of each edit, as a dataset for training.

    Of edits that are done those count that the job's rules accepted, where it has some. The same
    command again goes on where it was killed, and adds the pairs that came since. The output folder
    is only read, so it may be done while a job runs. Exit status: 3 if files of some edits are
    gone.
    """
    from jobs.export.show import show_export

    return status_of(
        show_export(output, to, format, where, all_, validation, shard_mb, license, dry_run, wait)
    )
