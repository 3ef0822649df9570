"""From plain values to a job: every problem at once, each with its place and the way out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, is_dataclass
from typing import Any, TypeVar, cast

from jobs.errors import nearest
from jobs.jobfile.docstrings import argument_texts
from pipeline.settings import (
    IN_THE_MANIFEST,
    NAMES_ELSEWHERE,
    NOT_THERE,
    places,
    places_meant,
)
from pipeline.values import WrongValue, checked, declared, shown

Section = TypeVar("Section")
PER_ROW = {"video": "videos", "prompts": "the prompts of edits"}
"""Sections whose names may be taken for what a manifest holds."""


def build(section: type[Section], values: Mapping[Any, Any], problems: list[str]) -> Section | None:
    """A section, with those inside it, from its values; None where something is wrong with it.

    Args:
        problems: what is wrong is added to it.
    """
    return _build(section, values, (), problems, places(section))


def _build(
    section: type[Section],
    values: Mapping[Any, Any],
    above: tuple[str, ...],
    problems: list[str],
    known: list[str],
) -> Section | None:
    before, made = len(problems), {}
    fields = declared(cast(Any, section))
    for key in values:
        if key not in fields:
            problems.append(_unknown(key, above, list(fields), known))
    for name, (kind, default) in fields.items():
        place = ".".join((*above, name))
        if name not in values:
            if default is MISSING:
                problems.append(
                    f"{place}: is missing; write `{name}: ...`, the {text_of(section, name)}"
                )
        elif is_dataclass(kind) and isinstance(kind, type):
            value = {} if values[name] is None else values[name]  # all its keys are commented out
            if isinstance(value, Mapping):
                made[name] = _build(kind, value, (*above, name), problems, known)
            else:
                problems.append(f"{place}: {_no_section(name, value, list(declared(kind)))}")
        else:
            try:
                made[name] = checked(kind, values[name], default)
            except WrongValue as error:
                problems.append(f"{place}: {error}")
    if len(problems) > before:
        return None
    try:
        return section(**made)
    except ValueError as error:
        problems.append(f"{'.'.join(above) or 'the job'}: {error}")
        return None


def _unknown(key: Any, above: tuple[str, ...], here: list[str], known: Iterable[str]) -> str:
    """A key that does not exist, and the one that was meant, if any is near."""
    name = key if isinstance(key, str) else shown(key)
    place = ".".join((*above, name))
    message = f"{place}: there is no such key"
    if name in known:  # with dots, as `--set` has it
        section, _, inner = name.rpartition(".")
        return f"{message}; in a file write `{section.replace('.', ': {')}: {{{inner}: ...}}`"
    longer = [one for one in here if one.startswith(name)] if len(name) > 2 else []
    near = longer[0] if len(longer) == 1 else nearest(name, here, cutoff=0.7)
    if near and name not in NAMES_ELSEWHERE and name not in NOT_THERE:
        return f"{message}; did you mean {near!r}?"
    if name in IN_THE_MANIFEST:
        return f"{message}; it belongs to the manifest, in the column {IN_THE_MANIFEST[name]!r}"
    if name in NOT_THERE:
        return f"{message}; {NOT_THERE[name]}"
    if meant := places_meant(name, known):
        return f"{message}; did you mean {' or '.join(map(repr, meant))}?"
    return f"{message}; known here: {', '.join(sorted(here))}"


def _no_section(name: str, value: Any, keys: list[str]) -> str:
    message = f"is {shown(value)}; expected a section; set one of its keys: {', '.join(keys)}"
    if isinstance(value, str) and (found := re.match(r"(\w+):(\S.*)", value)):
        return f"{message}; a space is missing: `{found.group(1)}: {found.group(2)}`"
    return f"{message}; {PER_ROW[name]} stand in the manifest" if name in PER_ROW else message


def text_of(section: type, name: str) -> str:
    """What the docstrings of a section and of those it follows from say of a setting."""
    texts: dict[str, str] = {}
    for one in reversed(section.__mro__):
        texts |= argument_texts(one.__doc__ or "")
    return texts.get(name, "").rstrip(".")
