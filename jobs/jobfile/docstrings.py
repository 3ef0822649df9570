"""What the docstring of a class says of each of its fields. Needs no packages."""

from __future__ import annotations

import inspect
import re


def argument_texts(docstring: str) -> dict[str, str]:
    """The texts of a docstring's `Args:` section by name; `a, b: text` gives both the text."""
    lines = inspect.cleandoc(docstring).split("\n")
    if "Args:" not in lines:
        return {}
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in lines[lines.index("Args:") + 1 :]:
        if line and not line.startswith(" "):
            break
        start = re.match(r"    ([\w, ]+): (.*)", line)
        if start and not line.startswith("     "):
            names = start.group(1).split(", ")
            texts.update(dict.fromkeys(names, start.group(2)))
        else:
            texts.update({name: f"{texts[name]} {line.strip()}".strip() for name in names})
    return texts
