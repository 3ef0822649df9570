"""One schema of all files of a manifest, the columns of their folders among them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from cluster.manifest import ManifestFile, ManifestFiles, carried, common_type
from jobs.manifest.files import FoundFile
from jobs.manifest.footers import Footer
from jobs.manifest.schema import SCHEMA

WHOLE_NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})")


@dataclass(frozen=True)
class Unified:
    """What the files of a manifest have in common.

    Args:
        files: how their rows are read.
        source: by column, the file that its type stands in first.
    """

    files: ManifestFiles
    source: dict[str, Footer]


def unify(footers: Sequence[Footer], problems: list[str]) -> Unified:
    """One schema for all files; where files disagree, a problem that names both.

    Args:
        footers: of files that have rows.
    """
    kinds = _partition_types([footer.file for footer in footers])
    values = [_partition_values(footer.file, kinds, problems) for footer in footers]
    footers = [_with_partition(footer, kinds, problems) for footer in footers]
    fields: dict[str, pa.Field] = {}
    source: dict[str, Footer] = {}
    for footer in footers:
        for field in footer.schema:
            field = _without_file_keys(field.with_type(carried(field.type)))
            known = fields.get(field.name)
            common = field.type if known is None else common_type(known.type, field.type)
            if known is None or pa.types.is_null(known.type):
                source[field.name] = footer
            if common is None:
                problems.append(_disagreement(field.name, footer, source[field.name]))
            else:
                fields[field.name] = (known or field).with_type(common)
    for footer in footers:
        problems.extend(_lacks(footer, fields, source))
        problems.extend(_too_wide(footer, fields, source))
    files = tuple(
        ManifestFile(footer.uri, value, footer.amount)
        for footer, value in zip(footers, values, strict=True)
    )
    return Unified(ManifestFiles(files, pa.schema(list(fields.values()))), source)


def _partition_types(files: Sequence[FoundFile]) -> dict[str, pa.DataType]:
    """The types of the columns that are folders: a manifest's own has its own.

    Any other one is a whole number where all values are, and none is written as `007`.
    """
    texts: dict[str, list[str]] = {}
    for file in files:
        for name, text in file.partition.items():
            texts.setdefault(name, []).extend([] if text is None else [text])
    kinds = {}
    for name, values in texts.items():
        whole = bool(values) and all(map(WHOLE_NUMBER.fullmatch, values))
        known = SCHEMA.field(name).type if name in SCHEMA.names else None
        kinds[name] = known or (pa.int64() if whole else pa.string())
    return kinds


def _partition_values(
    file: FoundFile, kinds: dict[str, pa.DataType], problems: list[str]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, text in file.partition.items():
        kind = kinds[name]
        try:
            whole, real = pa.types.is_integer(kind), pa.types.is_floating(kind)
            make = int if whole else float if real else str
            values[name] = None if text is None else make(text)
        except ValueError:
            problems.append(f"{file.uri}: the folder {name}={text} holds no {kind}")
    return values


def _with_partition(footer: Footer, kinds: dict[str, pa.DataType], problems: list[str]) -> Footer:
    """A footer whose schema has the columns of the file's folders too.

    A column that is in the file as well stands for itself where it has the folder's value in all
    rows, as some writers leave it.
    """
    schema, single = footer.schema, dict(footer.single)
    for name, text in footer.file.partition.items():
        if name not in schema.names:
            schema = schema.append(pa.field(name, kinds[name]))
        elif name not in single or str(single[name]) != text:
            problems.append(
                f"{footer.uri}: column {name!r} is in the file, and its folder is {name}={text}; "
                "leave one of them out"
            )
    return replace(footer, schema=schema)


def _without_file_keys(field: pa.Field) -> pa.Field:
    """A field without what holds for one file only."""
    kept = {k: v for k, v in (field.metadata or {}).items() if not k.startswith(b"PARQUET:")}
    return field.with_metadata(kept or None)


def _disagreement(name: str, footer: Footer, first: Footer) -> str:
    ours, theirs = (_type_in(file, name) for file in (footer, first))
    return (
        f"{footer.uri}: column {name!r} is {ours}, but in {first.uri} it is {theirs}; "
        "the files must agree"
    )


def _type_in(footer: Footer, name: str) -> str:
    return str(footer.schema.field(name).type) if name in footer.schema.names else "missing"


def _lacks(footer: Footer, fields: dict[str, pa.Field], source: dict[str, Footer]) -> list[str]:
    """A column of other files that this one lacks; one that is null there is no loss."""
    missing = [
        name
        for name, field in fields.items()
        if name not in footer.schema.names and not pa.types.is_null(field.type)
    ]
    return [_disagreement(name, source[name], footer) for name in missing]


def _too_wide(footer: Footer, fields: dict[str, pa.Field], source: dict[str, Footer]) -> list[str]:
    """Whole numbers of this file that the float of another one would round."""
    found = []
    for name in {first for first, _ in footer.wide if first in fields}:
        ours = dict(_numbers(name, footer.schema.field(name).type))
        theirs = dict(_numbers(name, fields[name].type))
        if any(
            key in footer.wide and pa.types.is_integer(kind) and pa.types.is_floating(theirs[key])
            for key, kind in ours.items()
            if key in theirs
        ):
            found.append(
                f"{footer.uri}: column {name!r} is {_type_in(footer, name)} with values "
                f"beyond 2^53, which the {fields[name].type} of other files cannot hold"
            )
    return found


def _numbers(top: str, kind: pa.DataType, name: str = "") -> list[tuple[tuple[str, str], Any]]:
    """The numbers in a type, by the first and the last name of their path."""
    if pa.types.is_struct(kind):
        return [pair for field in kind for pair in _numbers(top, field.type, field.name)]
    if hasattr(kind, "value_type") and not pa.types.is_dictionary(kind):
        return _numbers(top, kind.value_type, "element")
    return [((top, name or top), kind)]
