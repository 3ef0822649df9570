"""For the reference of the API: our docstrings as the parser of mkdocstrings knows them.

It knows no groups: `height, width: in pixels` becomes an entry for each name.
"""

from __future__ import annotations

import re
from typing import Any

import griffe


class OurDocstrings(griffe.Extension):
    """Loaded by `mkdocs.yml`."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = split(obj.docstring.value)


def split(docstring: str) -> str:
    """A docstring with an entry for each argument of a group."""

    def entries(found: re.Match[str]) -> str:
        return "".join(f"    {name}: {found.group(2)}" for name in found.group(1).split(", "))

    group = r"^    (\w+(?:, \w+)+): (.*\n(?: {5,}.*\n)*)"
    return re.sub(group, entries, docstring + "\n", flags=re.MULTILINE).removesuffix("\n")
