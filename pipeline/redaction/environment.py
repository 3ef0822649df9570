"""The secrets that environment variables hold: libraries put them into their messages."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import cache, lru_cache
from urllib.parse import quote, quote_plus, unquote

SHORTEST = 8
"""Characters of a value that is taken for a secret: `1` stands everywhere."""

_PASSWORD = re.compile(
    r"(?:^|_)[A-Z0-9]*(?:PASSWORD|PASSWD|PASSPHRASE)(?:_|$)|_(?:PASS|PWD)(?:_|$)"
)
_SECRET = re.compile(
    r"(?:^|_)(?:[A-Z0-9]*SECRET[A-Z0-9]*|[A-Z0-9]*TOKEN|CREDENTIALS?|COOKIE|SAS|DSN"
    r"|CONN(?:ECTION)?_?STR(?:ING)?|(?:API|ACCESS|ACCOUNT|PRIVATE|AUTH|[A-Z0-9]*STORAGE)?KEY)(?:_|$)"
    r"|_AUTH$"
)
_ABOUT_ONE = re.compile(
    r"(?<!ACCESS_KEY)_(?:NAMES?|FILES?|PATH|DIR|FOLDER|ARN|ID|URL|URI|HOST|PORT|REGION|VERSION"
    r"|TYPE|KIND|MODE|METHOD|ALGORITHM|FORMAT|PREFIX|SUFFIX|LENGTH|SIZE|COUNT|LIMIT|TTL|AGE"
    r"|EXPIRY|EXPIR(?:ES|ATION)|SOCK(?:ET)?|USER(?:NAME)?|PROVIDER|STORE|ENABLED)$"
)
"""Ends of names whose values tell of a secret, and are none."""
_PATH = re.compile(r"~|\.{0,2}/(?:[a-z]+/|$)|\./|\.\./")
_WORDS = re.compile(r"/?(?:[A-Za-z]{1,15}|\d{1,4})(?:[-_. :/](?:[A-Za-z]{1,15}|\d{1,4}))*")
"""`retake-prod`, `created_at`, `us-east-1`: such a value may stand in any path. Keys are no words;
a password may be, and is known by its variable's name alone."""
_LOGIN = re.compile(r"(?:^|//)([^\s/?#@:\[]*)(?::(?!//|:|\d+[/?#])(\S*))?@")
"""As in `DATABASE_URL` and `HTTPS_PROXY`. Digits are a port."""


def secrets() -> tuple[str, ...]:
    """The secrets in all forms in which a text may have them, long ones first: one may be part of
    another."""
    return _forms(tuple(item for item in os.environ.items() if "@" in item[1] or _tells(item[0])))


@cache
def _tells(variable: str) -> str:
    """What the name of a variable says that it holds: a `password`, a `secret`, or nothing."""
    name = variable.upper()
    if _ABOUT_ONE.search(name):
        return ""
    return "password" if _PASSWORD.search(name) else "secret" if _SECRET.search(name) else ""


@lru_cache(maxsize=8)
def _forms(variables: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    forms = {form for variable in variables for one in _held(*variable) for form in _written(one)}
    return tuple(sorted(forms, key=lambda form: (-len(form), form)))


def _held(variable: str, value: str) -> Iterator[str]:
    """The secrets that a variable holds."""
    tells = _tells(variable)
    if tells and _may_be_one(value) and (tells == "password" or not _WORDS.fullmatch(value)):
        yield value
    if login := _LOGIN.search(value):
        for part in filter(None, login.groups()):
            for one in {part, unquote(part)}:
                if _may_be_one(one) and not _WORDS.fullmatch(one):
                    yield one


def _may_be_one(value: str) -> bool:
    return len(value) >= SHORTEST and not _PATH.match(value)


def _written(secret: str) -> set[str]:
    """A secret as it is, in an address, and in quotes."""
    whole = quote(secret, safe="")
    lower = re.sub("%..", lambda code: code[0].lower(), whole)
    quoted = {repr(secret)[1:-1], json.dumps(secret)[1:-1]}
    return {secret, whole, lower, quote(secret), quote_plus(secret)} | quoted
