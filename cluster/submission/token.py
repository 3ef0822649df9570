"""The token that a Ray cluster asks for: found where Ray finds it, and never shown."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace

from cluster.job import CannotRun

VARIABLE = "RAY_AUTH_TOKEN"
PATH_VARIABLE = "RAY_AUTH_TOKEN_PATH"
MODE_VARIABLE = "RAY_AUTH_MODE"
DEFAULT = "~/.ray/auth_token"
IN_ENVIRONMENT = f"{VARIABLE}, the file that {PATH_VARIABLE} names, or {DEFAULT}"
PLACES = f"{VARIABLE}, the file that {PATH_VARIABLE} or --token-file names, or {DEFAULT}"
ON_THE_HEAD = "`ray get-auth-token` prints it on the head"
MOST_BYTES = 64 << 10
"""A file that is larger holds no token."""


@dataclass(frozen=True)
class Token:
    """A token, or none.

    Args:
        value: None where there is none.
        source: where it was found, for messages.
        file: that was named for it, where one was; else empty.
    """

    value: str | None = field(default=None, repr=False)
    source: str = ""
    file: str = ""

    def headers(self) -> dict[str, str]:
        """What a request carries."""
        return {"Authorization": f"Bearer {self.value}"} if self.value else {}


def find_token(file: str | None = None) -> Token:
    """The token that this machine has for a cluster, in the order in which Ray looks.

    Args:
        file: with the token; it comes before all other places.

    Raises:
        CannotRun: a file cannot be read, or what is there can be no token.
    """
    if file:
        return replace(_read(file, f"--token-file {file}"), file=file)
    if os.environ.get(MODE_VARIABLE, "").lower() == "disabled":
        return Token()
    if value := os.environ.get(VARIABLE, "").strip():
        return _checked(value, VARIABLE)
    if path := os.environ.get(PATH_VARIABLE):
        return _read(path, f"{PATH_VARIABLE} {path}")
    if os.path.isfile(os.path.expanduser(DEFAULT)):
        return _read(DEFAULT, DEFAULT)
    return Token()


def refused(cluster: str, token: Token, put: str) -> str:
    """What to say of a cluster that has another token.

    Args:
        cluster: as messages name it.
        put: where the right one goes.
    """
    return (
        f"{cluster} refuses the token of {token.source or 'no source'}: it has another one. "
        f"{ON_THE_HEAD}; put it into {put}"
    )


def missing(cluster: str, places: str = PLACES) -> str:
    """What to say of a cluster that asks for a token where this machine has none."""
    return f"{cluster} asks for a token, and there is none here. Set {places}; {ON_THE_HEAD}"


def _read(path: str, source: str) -> Token:
    try:
        with open(os.path.expanduser(path), "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise CannotRun(
            f"{source}: cannot be read: {error.strerror}; expected a file with the cluster's "
            "token, as `ray get-auth-token` prints it on the head"
        ) from error
    if len(data) > MOST_BYTES:
        raise CannotRun(f"{source}: has more than {MOST_BYTES} bytes; expected a token and no more")
    return _checked(data.decode(errors="replace").strip(), source)


def _checked(value: str, source: str) -> Token:
    """A token as one; what cannot stand in a request's header is none."""
    if re.fullmatch(r"[\x21-\x7e]+", value):
        return Token(value, source)
    what = "is empty" if not value else "has spaces, line ends or other letters in it"
    raise CannotRun(
        f"{source}: {what}; expected the cluster's token in one line, as `ray get-auth-token` "
        "prints it on the head"
    )
