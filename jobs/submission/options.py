"""The options of `retake submit`, and of all commands that ask a cluster about jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.errors import WrongOption

Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Of the cluster's dashboard, http://HEAD:8265; else RAY_API_SERVER_ADDRESS.",
    ),
]
TokenFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="With the cluster's token; else RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
        "~/.ray/auth_token.",
    ),
]
Variables = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        metavar="NAME",
        help="Have the job get this environment variable, with its value here, as AWS_PROFILE "
        "or HF_TOKEN. May be repeated.",
    ),
]
BringPackages = Annotated[
    bool,
    typer.Option(
        "--bring-packages", help="Have Ray install what Retake requires, in the versions here."
    ),
]
Image = Annotated[
    str | None, typer.Option(help="Run the job in this container image, which has Retake in it.")
]
Shared = Annotated[
    bool, typer.Option("--shared", help="The cluster sees this machine's files at the same paths.")
]
NoWait = Annotated[
    bool, typer.Option("--no-wait", help="Do not follow the log; come back at once.")
]


def check_folder(output: str, address: str | None, token_file: str | None) -> None:
    """Refuse, for an output folder, options that say where a cluster is.

    Raises:
        WrongOption: one is given.
    """
    for option, value in (("--address", address), ("--token-file", token_file)):
        if value:
            raise WrongOption(f"{option} is for the id of a submitted job; {output} is a folder")
