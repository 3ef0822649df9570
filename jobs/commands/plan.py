"""The command that says what a job is going to take."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.commands.app import EXIT_DONE, app
from jobs.options import Changes, JobFile, Only, count, count_or_none
from pipeline.redaction import say

Gpu = Annotated[
    list[str] | None,
    typer.Option(
        "--gpu",
        metavar="KIND",
        help="A kind of GPU, as H100 or A100-80; may be repeated. By default a few of them.",
    ),
]
Gpus = Annotated[
    int,
    typer.Option("--gpus", parser=count, metavar="N", help="GPUs that the job may use."),
]
Price = Annotated[
    list[str] | None,
    typer.Option(metavar="PRICE", help="Of a GPU for an hour: 2.5, or H100=2.5; may be repeated."),
]
Rates = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Speeds that were measured, over those that are assumed."),
]
Sample = Annotated[
    int,
    typer.Option(
        parser=count_or_none,
        metavar="N",
        help="Videos to open, to see how long clips are; 0 for none.",
    ),
]
Trial = Annotated[
    int | None,
    typer.Option(
        parser=count,
        metavar="N",
        help="Beside all of them the first N videos with something pending, 10 by default.",
    ),
]
Everything = Annotated[bool, typer.Option("--all", help="Plan all edits, those that are done too.")]


@app.command()
def plan(
    job: JobFile,
    set_: Changes = None,
    gpu: Gpu = None,
    gpus: Gpus = 8,
    price: Price = None,
    rates: Rates = None,
    sample: Sample = 16,
    limit: Trial = None,
    only: Only = None,
    all_: Everything = False,
    json: Annotated[bool, typer.Option("--json", help="One object of JSON.")] = False,
) -> int:
    """Say what a job is going to take: memory, groups, GPU hours, time, storage, money.

    Nothing runs, nothing is written. Of the checkpoint its configuration files are read, no
    weights. Each figure is counted, measured or assumed, and says so.
    """
    from jobs.plan import TRIAL, Asked, plan_job
    from jobs.plan.as_json import as_json
    from jobs.plan.show import show
    from jobs.spec import load_job
    from jobs.trial import part_of

    part = part_of(only or [], limit)
    asked = Asked(
        gpus=tuple(gpu or ()),
        count=gpus,
        price=tuple(price or ()),
        rates=rates,
        sample=sample,
        everything=all_,
        selection=part.selection if part else None,
        limit=limit or TRIAL,
    )
    planned = plan_job(load_job(job, set_ or []), asked, job)
    if json:
        say(as_json(planned))
    else:
        show(planned)
    return EXIT_DONE
