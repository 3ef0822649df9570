"""From plain values to a job: every problem at once, each with its place and the way out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, is_dataclass
from typing import Any, TypeVar, cast, get_args, get_origin

from jobs.errors import nearest
from jobs.jobfile.docstrings import argument_texts
from pipeline.settings import (
    places,
    places_meant,
)
from pipeline.values import WrongValue, checked, declared, shown
from pipeline.values.elsewhere import IN_THE_MANIFEST, NAMES_ELSEWHERE, NOT_THERE

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
        place = _joined((*above, name))
        if name not in values:
            if default is MISSING:
                problems.append(
                    f"{place}: is missing; write `{name}: ...`, the {text_of(section, name)}"
                )
        else:
            made[name] = _made(kind, values[name], default, (*above, name), problems, known)
    if len(problems) > before:
        return None
    try:
        return section(**made)
    except ValueError as error:
        problems.append(f"{_joined(above).rstrip(':') or 'the job'}: {error}")
        return None


def _made(
    kind: Any,
    value: Any,
    default: Any,
    above: tuple[str, ...],
    problems: list[str],
    known: list[str],
) -> Any:
    """The value of one setting, its place being `above`."""
    if (inside := _inside_list(kind)) is not None:
        return _build_list(inside, value, above, problems, known)
    if is_dataclass(kind) and isinstance(kind, type):
        value = {} if value is None else value  # all its keys are commented out
        if isinstance(value, Mapping):
            return _build(kind, value, above, problems, known)
        keys = list(declared(cast(Any, kind)))
        problems.append(f"{_joined(above)}: {_no_section(above[-1], value, keys)}")
        return None
    try:
        return checked(kind, value, default)
    except WrongValue as error:
        problems.append(f"{_joined(above)}: {error}")
        return None


def _inside_list(kind: Any) -> type | None:
    """The section that a list holds, where a setting is a list of sections."""
    if get_origin(kind) is not tuple or get_args(kind)[1:] != (...,):
        return None
    inside = get_args(kind)[0]
    return inside if is_dataclass(inside) and isinstance(inside, type) else None


def _build_list(
    section: type,
    given: Any,
    above: tuple[str, ...],
    problems: list[str],
    known: list[str],
) -> tuple[Any, ...] | None:
    """Sections from a list of their values."""
    place, keys = _joined(above), list(declared(section))
    if given is None:
        return ()
    if not isinstance(given, list | tuple):
        way_out = ""
        if isinstance(given, Mapping) and given:
            way_out = f"; write it as a list: `- {next(iter(given))}: ...`"
        problems.append(
            f"{place}: is {shown(given)}; expected a list of sections, each with some of the keys "
            f"{', '.join(keys)}{way_out}"
        )
        return None
    made: list[Any] = []
    for number, values in enumerate(given, 1):
        here = (*above[:-1], f"{above[-1]}: number {number}:")
        if isinstance(values, Mapping):
            made.append(_build(section, values, here, problems, known))
        else:
            problems.append(f"{_joined(here)} {_no_section('', values, keys)}")
    return None if None in made else tuple(made)


def _joined(parts: tuple[str, ...]) -> str:
    """A place, as messages name it: `video.height`, `candidates: number 3: start`."""
    return ".".join(parts).replace(":.", ": ")


def _unknown(key: Any, above: tuple[str, ...], here: list[str], known: Iterable[str]) -> str:
    """A key that does not exist, and the one that was meant, if any is near."""
    name = key if isinstance(key, str) else shown(key)
    place = _joined((*above, name))
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
