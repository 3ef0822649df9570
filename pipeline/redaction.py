"""Secrets taken out of texts that are shown or stored: messages, results, `job.yaml`, the gallery.

A secret is what a location carries to prove who asks (`user:password@`, the signature in a query),
what names itself one (`token=...`, `Authorization: Bearer ...`), what has the form of a known key,
and the value of an environment variable with such a name. What is left shows which secret it was.
"""

from __future__ import annotations

import os
import re
from functools import cache
from typing import TypeVar

HIDDEN = "***"
"""What stands in the place of a secret. It is no value that anything could work with."""

_NAMES = (
    r"(?:x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|googleaccessid"
    r"|key-pair-id|policy|hdnea|sig|signature|(?:[a-z0-9]{1,40}[-_]){0,8}(?:api[-_]?key|access[-_]?key"
    r"(?:[-_]id)?|account[-_]?key|secret(?:[-_](?:access[-_])?key)?|key|token|password|passwd|pwd"
    r"|credentials?|auth))"
)
_QUERY = re.compile(rf"([?&;#]{_NAMES}=)[^&;#\s'\"`,)\]}}]*[^&;#\s'\"`,)\]}}:]", re.IGNORECASE)
_WORDS = (
    r"(?:api_?key|access_?key(?:_id)?|account_?key|secret(?:_(?:access_)?key)?|token|passw(?:or)?d)"
)
_ASSIGNED = re.compile(
    rf"((?:\b(?:[a-z0-9]{{1,40}}_){{0,8}}{_WORDS}\s?=\s?|\b(?:[a-z0-9]{{1,40}}_){{1,8}}{_WORDS}:\s"
    rf"|{_WORDS}['\"]:\s?)['\"]?)[^\s'\"`,;&)\]}}]{{6,}}",
    re.IGNORECASE,
)
_LOGIN = re.compile(r"([a-z][a-z0-9+.-]*://)[^\s/?#'\"`]+@", re.IGNORECASE)
_BEARER = re.compile(r"(\b(?:bearer|basic)\s+)[\w.~+/=-]{12,}", re.IGNORECASE)
_FORMS = re.compile(
    r"\b(?:(?:AKIA|ASIA|AROA)[A-Z0-9]{12,}|hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|xox[abprs]-[\w-]{10,}|sk-[\w-]{20,}|ya29\.[\w.-]{20,}|AIza[\w-]{30,}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)"
)
_KEY_FILE = re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END|$)", re.DOTALL)
_SECRET_VARIABLE = re.compile(r"(?:^|_)(?:\w*KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIALS?)(?:_|$)")
SHORTEST = 8
"""Characters of a value of the environment that is taken for a secret: `1` stands everywhere."""

Text = TypeVar("Text", str, None, str | None)


def redacted(text: Text) -> Text:
    """A text without the secrets in it; itself where there are none."""
    if not text:
        return text
    safe = text
    for value in _of_the_environment():
        safe = safe.replace(value, HIDDEN)
    if "://" in safe:
        safe = _LOGIN.sub(rf"\1{HIDDEN}@", safe)
    if "=" in safe or ":" in safe:
        safe = _QUERY.sub(rf"\1{HIDDEN}", safe)
        safe = _ASSIGNED.sub(rf"\1{HIDDEN}", safe)
    if "asic " in safe or "earer " in safe:
        safe = _BEARER.sub(rf"\1{HIDDEN}", safe)
    if "-----BEGIN" in safe:
        safe = _KEY_FILE.sub(rf"\1{HIDDEN}\2", safe)
    return _FORMS.sub(HIDDEN, safe)


def has_hidden(location: str) -> bool:
    """Whether a secret was taken out of a location, so that nothing can open it."""
    return f"{HIDDEN}@" in location or f"={HIDDEN}" in location


def _of_the_environment() -> tuple[str, ...]:
    """The values of variables that hold secrets, long ones first: one may be part of another.

    A path, as of a file with credentials, is none.
    """
    values = {os.environ.get(name, "") for name in filter(_is_named_secret, os.environ)}
    secrets = (v for v in values if len(v) >= SHORTEST and not v.startswith(("/", "~", ".")))
    return tuple(sorted(secrets, key=len, reverse=True))


@cache
def _is_named_secret(variable: str) -> bool:
    return _SECRET_VARIABLE.search(variable.upper()) is not None
