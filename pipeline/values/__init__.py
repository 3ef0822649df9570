"""Whether a value fits what a setting is declared as, and the message where it does not.

One check for a job file, for `--set` and for settings that are made in Python, so that all three
refuse the same values with the same words. Plain Python: no torch.
"""

from __future__ import annotations

import difflib
import math
import operator
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import date, datetime
from functools import cache
from numbers import Integral, Real
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import MinLen

LONGEST_NUMBER = 20
"""Digits of a number that a message tells to write."""
LONGEST_SHOWN = 60
"""Characters of a text in a message."""
TRUE_OR_FALSE = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
COUNTS = {2: "two", 3: "three", 4: "four"}


class WrongValue(ValueError):
    """A value that does not fit; the text goes on from the setting's name: `is 0; expected ...`."""


class _Misfit(Exception):
    """A value does not fit one of the kinds that are tried."""


@dataclass(frozen=True)
class Also:
    """In an annotation: old names of values that are still taken, as pairs (old, today's)."""

    names: tuple[tuple[str | None, str], ...]


def check_fields(settings: Any) -> None:
    """Check every field of a frozen dataclass, and bring each to its declared type.

    A whole number becomes the float, and a list the tuple, that the field is declared as: equal
    settings are then equal, however they were written.

    Raises:
        ValueError: a value does not fit; the text names it, what is expected, and the way out.
    """
    section: Any = type(settings)
    for name, (kind, default) in declared(section).items():
        try:
            value = checked(kind, getattr(settings, name), default)
        except WrongValue as error:
            raise ValueError(f"{name} {error}") from None
        object.__setattr__(settings, name, value)


def declared(settings: Any) -> dict[str, tuple[Any, Any]]:
    """The kind and the default (MISSING where there is none) of each field of a dataclass."""
    return _declared(settings)


@cache
def _declared(section: Any) -> dict[str, tuple[Any, Any]]:
    kinds = get_type_hints(section, include_extras=True)
    return {field.name: (kinds[field.name], field.default) for field in fields(section)}


def checked(kind: Any, value: Any, default: Any = MISSING) -> Any:
    """A value as its kind wants it.

    Args:
        kind: the annotation: a plain type, `Literal`, `Annotated` with bounds, a tuple or a union.
        default: of the setting, for the message where the value is missing.

    Raises:
        WrongValue: the value does not fit.
    """
    try:
        return _fitted(kind, value)
    except _Misfit:
        way_out = _way_out(kind, value, default)
        text = f"is {shown(value)}; expected {in_words(kind)}{f'; {way_out}' if way_out else ''}"
        raise WrongValue(text) from None


def _fitted(kind: Any, value: Any) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _fitted_in_bounds(inner[0], inner[1:], value)
    if origin in (Union, UnionType):
        for one in inner:
            with suppress(_Misfit):
                return _fitted(one, value)
        raise _Misfit
    if origin is Literal:
        return _fitted_name(inner, value)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _Misfit
        if inner[1:] == (...,):
            return tuple(_fitted(inner[0], part) for part in value)
        if len(value) != len(inner):
            raise _Misfit
        return tuple(_fitted(one, part) for one, part in zip(inner, value, strict=True))
    return _fitted_plain(kind, value)


def _fitted_in_bounds(kind: Any, notes: tuple[Any, ...], value: Any) -> Any:
    for note in notes:
        if isinstance(note, Also) and isinstance(value, str | None):
            value = dict(note.names).get(value, value)
    value = _fitted(kind, value)
    for name, _, limit in _bounds(notes):
        if not _HOLDS[name](value, limit):
            raise _Misfit
    if any(isinstance(note, MinLen) and len(value.strip()) < note.min_length for note in notes):
        raise _Misfit
    return value


def _fitted_name(known: tuple[Any, ...], value: Any) -> Any:
    """The one of the known values that equals it; True is not 1."""
    if isinstance(value, str | Real) and not isinstance(value, bool):
        for one in known:
            if one == value:
                return one
    raise _Misfit


def _fitted_plain(kind: Any, value: Any) -> Any:
    if kind in (int, float):
        if not isinstance(value, Real) or isinstance(value, bool):
            raise _Misfit
        if kind is int and isinstance(value, Integral):
            return int(value)
        try:
            real = float(value)
        except OverflowError:
            raise _Misfit from None
        if not math.isfinite(real) or (kind is int and not real.is_integer()):
            raise _Misfit
        return kind(real)
    if kind is str and isinstance(value, PurePath):
        return str(value)
    if kind is bool and _is_numpy_bool(value):
        return bool(value)
    if not isinstance(value, kind):
        raise _Misfit
    return value


def _is_numpy_bool(value: Any) -> bool:
    """Whether it is a truth of numpy, which unlike its numbers is of none of Python's kinds."""
    return type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_")


_HOLDS: dict[str, Callable[[Any, Any], bool]] = {
    "ge": operator.ge,
    "gt": operator.gt,
    "le": operator.le,
    "lt": operator.lt,
}
_WORDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def _bounds(notes: tuple[Any, ...]) -> Iterator[tuple[str, str, Any]]:
    """The bounds of an annotation: name, words, limit."""
    for note in notes:
        for name, words in _WORDS.items():
            if (limit := getattr(note, name, None)) is not None:
                yield name, words, limit


def in_words(kind: Any) -> str:
    """What fits a kind, as a message says it: `a whole number from 1 to 1000`."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        if any(isinstance(note, MinLen) for note in inner[1:]):
            return f"{in_words(inner[0])} that is not empty"
        limits = {name: (words, number(limit)) for name, words, limit in _bounds(inner[1:])}
        if limits.keys() == {"ge", "le"}:
            return f"{in_words(inner[0])} from {limits['ge'][1]} to {limits['le'][1]}"
        if limits.keys() == {"ge"}:
            return f"{in_words(inner[0])}, {limits['ge'][1]} or more"
        return " ".join([in_words(inner[0]), " and ".join(map(" ".join, limits.values()))]).strip()
    if origin in (Union, UnionType):
        options = [in_words(one) for one in inner if one is not NoneType]
        return ", or ".join([*options, *(["null"] if NoneType in inner else [])])
    if origin is Literal:
        *names, last = map(str, inner)
        return f"{', '.join(names)} or {last}" if names else last
    if origin is tuple and inner[1:] == (...,):
        return f"a list, each {in_words(inner[0])}"
    if origin is tuple:
        count = COUNTS.get(len(inner), str(len(inner)))
        one = in_words(inner[0]).removeprefix("a ").replace("number", "numbers", 1)
        return f"[first, last]: {count} {one}"
    if is_dataclass(kind):
        return f"a {kind.__name__}"  # type: ignore[union-attr]
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]


def _way_out(kind: Any, value: Any, default: Any) -> str:
    """What to write instead, where the value shows what was meant; else empty."""
    plain = set(_plain_kinds(kind))
    names = [one for one in plain if isinstance(one, str)]
    if value is None:
        return "" if default is MISSING else f"leave it out for the default, {shown(default)}"
    if isinstance(value, str):
        return _for_a_text(kind, plain, names, value)
    if isinstance(value, bool) and (str in plain or names):
        return "YAML reads yes, no, on and off as true and false: put a text in quotes"
    if isinstance(value, Real | date) and not isinstance(value, bool) and str in plain:
        return f"put it in quotes: {str(value)!r}"
    if isinstance(value, list | tuple) and len(value) == 1 and _fits(kind, value[0]):
        return f"write {shown(value[0])} without the brackets"
    if isinstance(value, Real) and tuple in plain:
        return "give both ends, as in [0, 1]"
    if isinstance(value, list | tuple) and tuple in plain and len(value) != 2:
        return f"it has {len(value)} part{'s' * (len(value) != 1)}"
    if (
        float in plain
        and isinstance(value, Integral)
        and 1 < int(value) <= 100
        and _fits(kind, int(value) / 100)
    ):
        return f"for {value}% write {number(int(value) / 100)}"
    return ""


def _for_a_text(kind: Any, plain: set[Any], names: list[str], value: str) -> str:
    meant = _as_number(value)
    if meant is not None and plain & {int, float}:
        fits = _fits(kind, meant)
        fits = fits and len(number(meant)) <= LONGEST_NUMBER
        return f"write {number(meant)} without quotes" if fits else "write a number, not a text"
    if bool in plain and value.strip().lower() in TRUE_OR_FALSE:
        return f"write {shown(TRUE_OR_FALSE[value.strip().lower()])} without quotes"
    near = difflib.get_close_matches(value.strip().lower(), names, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else ""


def _fits(kind: Any, value: Any) -> bool:
    try:
        _fitted(kind, value)
    except _Misfit:
        return False
    return True


def _plain_kinds(kind: Any) -> Iterator[Any]:
    """The plain types, and the known names, that a kind takes."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        yield from _plain_kinds(inner[0])
    elif origin in (Union, UnionType):
        for one in inner:
            yield from _plain_kinds(one)
    elif origin is Literal:
        yield from inner
    elif origin is tuple and inner[1:] == (...,):
        yield list  # of any length
    else:
        yield origin or kind


def _as_number(text: str) -> float | None:
    """The number that a text holds, as `1e3`, which YAML reads as a text, and `"50"`."""
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def number(value: float) -> str:
    """A number as a person writes it: 1000000, 0.6, 50."""
    return str(int(value)) if float(value).is_integer() else str(value)


class _Shown(reprlib.Repr):
    """A value as YAML says it, cut short; a message never grows with what was given."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = LONGEST_SHOWN
        self.maxlevel, self.maxdict = 3, 4

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, str):
            return self.repr_str(str(x), level)
        if x is None or isinstance(x, bool):
            return {None: "null", True: "true", False: "false"}[x]
        if isinstance(x, Integral):
            return super().repr1(int(x), level)
        if isinstance(x, float):
            return number(x) if math.isfinite(x) else str(x)
        if isinstance(x, tuple):
            return super().repr1(list(x), level)
        return str(x) if isinstance(x, date | datetime) else super().repr1(x, level)


def shown(value: Any) -> str:
    """A value as a message shows it: as YAML has it, at most some 60 characters of each part."""
    return _Shown().repr(dict(value) if isinstance(value, Mapping) else value)
