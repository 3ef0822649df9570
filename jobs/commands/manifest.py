"""The command that makes manifests."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.commands.app import EXIT_DONE, app
from jobs.errors import counted
from pipeline.redaction import say

Sources = Annotated[
    list[str],
    typer.Argument(
        default_factory=list,  # not required, so that our own message says what is missing
        show_default=False,
        help="Videos, folders, globs, .txt lists, tables (CSV, TSV, JSON, JSONL, Parquet) or "
        "WebDataset tar files; one or more.",
        metavar="SOURCE",
    ),
]
Prompts = Annotated[list[str] | None, typer.Option(help="An edit of every video; may be repeated.")]
VideoColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="The table's column that names the video.")
]
PromptColumns = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="The one with the edit prompt; may be repeated."),
]
SourcePromptColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="The one that describes the source.")
]
VideosFolder = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="The folder that the videos' names are looked up in."),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="folder, list, table, webdataset, huggingface, tgve, balancecc, five or ivebench; "
        "guessed by default.",
    ),
]


@app.command()
def manifest(
    sources: Sources,
    to: Annotated[
        str, typer.Argument(help="The manifest to write (.parquet).", metavar="MANIFEST")
    ],
    prompt: Prompts = None,
    video_column: VideoColumn = None,
    prompt_column: PromptColumns = None,
    source_prompt_column: SourcePromptColumn = None,
    videos: VideosFolder = None,
    format_: Format = None,
    pattern: Annotated[str, typer.Option(help="For a folder: which files.")] = "**/*",
    absolute: Annotated[
        bool, typer.Option("--absolute", help="Name videos by absolute paths.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Look whether local videos are there.")
    ] = True,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad entries out instead of stopping.")
    ] = False,
) -> int:
    """Make a manifest from videos, a table, a dataset, or a published benchmark's file.

    The last argument is the manifest; videos near it are named relative to it.
    """
    if not sources:
        example = f"retake manifest {to} manifest.parquet --prompt TEXT"
        raise typer.BadParameter(f"it is missing; write `{example}`", param_hint="MANIFEST")
    from jobs.manifest.conversion.columns import ColumnOptions
    from jobs.manifest.conversion.formats import Options
    from jobs.manifest.make import make_manifest

    columns = ColumnOptions(video_column, tuple(prompt_column or ()), source_prompt_column)
    options = Options(prompt or [], columns, videos, pattern, skip_bad)
    made = make_manifest(sources, to, options, kind=format_, whole_paths=absolute, check=check)
    for warning in made.warnings:
        say(f"warning: {warning}", problem=True)
    for note in made.notes:
        say(note)
    say(f"{to}: {counted(made.videos, 'video')}, {counted(made.edits, 'edit')}")
    say(f"next: `retake init` writes a job file; its lines are `manifest: {to}`, `output: out`")
    return EXIT_DONE
