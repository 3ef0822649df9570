"""Mistakes that are made by the line: commands, lines of a job file, values of a row or an edit."""

from __future__ import annotations

import shlex

from tests.docs.mistakes.provoke import Mistakes, retake, row, validate


def commands(*lines: str) -> Mistakes:
    return {f"`retake {line}`": lambda line=line: retake(*shlex.split(line)) for line in lines}


def jobs(*lines: str, whole: bool = False) -> Mistakes:
    return {f"`{line}`": lambda line=line: validate(f"{line}\n", whole=whole) for line in lines}


def changes(*options: str) -> Mistakes:
    return {f"`--set {one}`": lambda one=one: validate("", "--set", one) for one in options}


def videos(*names: str) -> Mistakes:
    return {f"the video `{one}`": lambda one=one: row(video=one) for one in names}


def in_row(**values: object) -> Mistakes:
    return {
        f"`{name}` is `{value!r}`": lambda name=name, value=value: row(**{name: value})
        for name, value in values.items()
    }


def in_edit(*edits: dict[str, object]) -> Mistakes:
    return {f"an edit `{one}`": lambda one=one: row(edits=[one]) for one in edits}
