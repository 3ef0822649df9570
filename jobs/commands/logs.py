"""The command that shows the log of a run."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from jobs.commands.app import EXIT_DONE, app
from jobs.errors import WrongOption
from jobs.submission.options import Address, TokenFile, check_folder
from pipeline.redaction import say, say_json


@app.command()
def logs(
    output: Annotated[
        str,
        typer.Argument(
            help="The output folder of a job, a path or URI; or the id of a submitted job."
        ),
    ],
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="The name of a run; the newest by default.")
    ] = None,
    level: Annotated[str, typer.Option(help="The lowest: info, warning or error.")] = "info",
    video: Annotated[
        str | None, typer.Option(metavar="ID", help="Only events of this video_id.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run ends.")
    ] = False,
    address: Address = None,
    token_file: TokenFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="The lines of JSON as stored.")] = False,
) -> int:
    """Show what happened in a run: the logs of all its processes, in the order of time.

    Works while the run goes on and afterwards, on any machine that reads the output folder. Times
    are UTC. `!` marks a warning and `X` an error. Of a submitted job what it has printed is shown.
    """
    from cluster.submission.ids import is_job_id

    if is_job_id(output):
        from cluster.submission.submitted import job_logs

        for option, given in (
            ("--run", run),
            ("--level", level != "info"),
            ("--video", video),
            ("--json", as_json),
        ):
            if given:
                raise WrongOption(
                    f"{option} is for an output folder; of {output} there is what it printed"
                )
        for line in job_logs(output, address, token_file, follow=follow):
            say(line)
        return EXIT_DONE
    check_folder(output, address, token_file)
    from jobs.logs import Wanted, followed, logged
    from jobs.logs.lines import readable

    wanted = Wanted(level, video)
    for event in (followed if follow else logged)(output, run, wanted):
        if as_json:
            say_json(json.loads(event.to_line()))
        else:
            say(readable(event))
    return EXIT_DONE
