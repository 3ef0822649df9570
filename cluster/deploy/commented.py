"""YAML with comments: a target builds plain values and says beside each why it is so."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

WIDTH = 98


@dataclass(frozen=True)
class Why:
    """A value of a mapping with the comment above its key.

    Args:
        text: wrapped to the width of the file; a line break begins a new line.
    """

    value: Any
    text: str


def commented(value: Any, head: str = "") -> str:
    """A YAML document, with what is a `Why` in it shown below its comment.

    Args:
        head: a comment at the beginning.
    """
    return "\n".join([*comment(head), *_lines(value), ""])


def plain(value: Any) -> Any:
    """The values without their comments: what a reader of the document gets."""
    if isinstance(value, Why):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def comment(text: str, indent: str = "") -> list[str]:
    """Lines of a comment; none for no text."""
    found = []
    for line in text.splitlines():
        wrapped = textwrap.wrap(line, WIDTH - len(indent) - 2, break_on_hyphens=False) or [""]
        found += [f"{indent}# {one}".rstrip() for one in wrapped]
    return found


def _lines(value: Any, indent: str = "") -> list[str]:
    if isinstance(value, Mapping):
        return [line for key, one in value.items() for line in _entry(key, one, indent)]
    return [line for one in value for line in _item(one, indent)]


def _entry(key: str, value: Any, indent: str) -> list[str]:
    lines = []
    if isinstance(value, Why):
        lines, value = comment(value.text, indent), value.value
    name = f"{indent}{_scalar(key)}:"
    if _is_open(value):
        return [*lines, name, *_lines(value, indent + "  ")]
    if isinstance(value, str) and _is_block(value):
        body = [f"{indent}  {line}" if line else "" for line in value.splitlines()]
        return [*lines, f"{name} |", *body]
    return [*lines, f"{name} {_scalar(value)}"]


def _item(value: Any, indent: str) -> list[str]:
    lines = []
    if isinstance(value, Why):
        lines, value = comment(value.text, indent), value.value
    if not _is_open(value):
        return [*lines, f"{indent}- {_scalar(value)}"]
    inner = _lines(value, indent + "  ")
    # The dash stands before the first line that is no comment.
    first = next(n for n, line in enumerate(inner) if not line.lstrip().startswith("#"))
    above = [line[2:] for line in inner[:first]]
    return [*lines, *above, f"{indent}- {inner[first][len(indent) + 2 :]}", *inner[first + 1 :]]


def _is_open(value: Any) -> bool:
    """Whether it is written in lines of its own."""
    return bool(value) and isinstance(value, Mapping | Sequence) and not isinstance(value, str)


def _is_block(text: str) -> bool:
    """Whether a text can stand as it is, line below line."""
    lines = text.splitlines()
    return (
        len(lines) > 1
        and text.endswith("\n")
        and not text.endswith("\n\n")
        and not text.startswith((" ", "\n"))
        and all(line.isprintable() and line == line.rstrip() for line in lines)
    )


def _scalar(value: Any) -> str:
    """One line, whatever stands in a text."""
    odd = isinstance(value, str) and not value.isprintable()
    style: dict[str, Any] = {"default_style": '"'} if odd else {"default_flow_style": True}
    text: str = yaml.safe_dump(value, width=1 << 20, allow_unicode=not odd, **style)
    return text.removesuffix("\n").removesuffix("\n...")
