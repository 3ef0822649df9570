"""The command that writes the dashboard of a run's metrics."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from jobs.commands.app import EXIT_DONE, app
from jobs.errors import UserError
from pipeline.redaction import say


@app.command()
def dashboard(
    file: Annotated[str, typer.Argument(help="The file to write (JSON).", metavar="FILE")],
) -> int:
    """Write a Grafana dashboard of the metrics of runs, to be imported there."""
    from cluster.metrics.dashboard import dashboard as made
    from pipeline.locations import absolute
    from pipeline.storage import explain, write_file

    try:
        write_file(absolute(file), json.dumps(made(), indent=2).encode())
    except Exception as error:  # each storage has its own kinds of failure
        raise UserError(f"{file}: {explain(error, file, 'written').text}") from error
    say(f"{file}: import it in Grafana (Dashboards, New, Import), and choose your Prometheus there")
    return EXIT_DONE
