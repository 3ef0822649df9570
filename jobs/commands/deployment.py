"""The command that writes files for machines elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.commands.app import EXIT_DONE, app
from jobs.options import Changes, JobFile, count
from pipeline.redaction import say

Target = Annotated[
    str,
    typer.Argument(help="kuberay, slurm, docker, aws, gcp or skypilot.", metavar="TARGET"),
]
To = Annotated[str, typer.Option(metavar="FOLDER", help="A local folder to write to.")]
GpuKind = Annotated[
    str, typer.Option(metavar="KIND", help="H200, H100, A100-80GB, A100-40GB, L40S, L4, A10G.")
]
GpusPerNode = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", help="By default what machines of that kind have."),
]
Nodes = Annotated[
    int | None,
    typer.Option(parser=count, metavar="N", help="By default what the job's groups fill."),
]
Image = Annotated[str, typer.Option(metavar="NAME", help="The containers', with registry and tag.")]
Spot = Annotated[
    bool, typer.Option("--spot/--no-spot", help="Machines that may be taken away, for less money.")
]
Queue = Annotated[str, typer.Option(metavar="NAME", help="Kueue's queue, or Slurm's partition.")]
Env = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="A variable that the job needs, its name only; may be repeated."
    ),
]
Zone = Annotated[
    str,
    typer.Option(
        metavar="PLACE", help="A region of AWS, a zone of Google Cloud, SkyPilot's infra."
    ),
]
Project = Annotated[
    str, typer.Option(metavar="ID", help="Google Cloud's project that pays for the machines.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files.")]


@app.command()
def deploy(
    target: Target,
    job: JobFile,
    to: To,
    gpu_kind: GpuKind = "",
    gpus_per_node: GpusPerNode = None,
    nodes: Nodes = None,
    image: Image = "",
    spot: Spot = False,
    queue: Queue = "",
    env: Env = None,
    zone: Zone = "",
    project: Project = "",
    set_: Changes = None,
    overwrite: Overwrite = False,
) -> int:
    """Write the files that bring up machines for a job and run it there.

    Nothing is started, and nothing is read but the job file. No secret is written: the files name
    the environment variables that hold them.
    """
    from cluster.deploy.needs import Choices
    from jobs.deployment import write_files
    from jobs.spec import load_job

    spec = load_job(job, set_ or [])
    how = {"gpu_kind": gpu_kind, "gpus_per_node": gpus_per_node, "nodes": nodes, "image": image}
    place = {"zone": zone, "project": project}
    choices = Choices(**how, **place, spot=spot, queue=queue, env=tuple(env or ()))  # type: ignore[arg-type]
    written = write_files(target, spec, choices, to, overwrite=overwrite, job_file=job)
    for warning in written.warnings:
        say(f"warning: {warning}", problem=True)
    for file in written.files:
        say(file)
    say("next:")
    for line in written.next:
        say(f"  {line}")
    return EXIT_DONE
