"""What a manifest must be before a job runs from it: a Parquet file, or a folder of them.

`check_manifest` reads the footers alone and refuses, in one message that lists every problem, a
manifest that no job could run from; what is wrong with single rows is found later, by
`cluster.rows`. Columns that the schema does not name pass through to the results unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from jobs.errors import nearest
from jobs.manifest.footers import Footer, read_footers, refusal
from jobs.manifest.schema import EDIT, EDIT_FIELDS, MEANING, SCHEMA, fits, is_list, is_string


@dataclass(frozen=True)
class ManifestInfo:
    """What the footers of a manifest tell.

    Args:
        files: its Parquet files, as URIs; plain absolute paths if they are local.
        edits: how many edits have a prompt; None if the writer left out the statistics.
        extra_columns: the columns that pass through to the results.
        warnings: extra columns and fields that look like a misspelt known one.
    """

    uri: str
    files: tuple[str, ...]
    rows: int
    edits: int | None
    columns: tuple[str, ...]
    extra_columns: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def check_manifest(
    uri: str, *, reserved: frozenset[str] = frozenset(), leave_out: str | None = None
) -> ManifestInfo:
    """Read the footers of the manifest and check them.

    Args:
        uri: a file or a folder of `*.parquet` files, local or of any fsspec protocol.
        reserved: names that the results use themselves; no extra column may have one.
        leave_out: a folder whose files are none of the manifest's, where it lies in the manifest's
            own: a job's output.

    Raises:
        ManifestError: missing, empty, not Parquet, a column missing or of the wrong type, files
            that differ, an extra column with a reserved name.
    """
    footers = read_footers(uri, leave_out)
    report = _Report([f"{footer.uri}: {footer.damage}" for footer in footers if footer.damage])
    readable = [footer for footer in footers if footer.schema is not None]
    rows = sum(footer.rows for footer in readable)
    if readable:
        first, *others = readable
        _check_columns(first, reserved, report)
        for other in others:
            _compare(other, first, report)
        if not rows:
            report.problems.append(f"{uri} has no rows; expected one for each video")
    if report.problems:
        raise refusal(uri, report.problems)
    names = tuple(readable[0].schema.names)
    counts = [footer.edits for footer in readable if footer.edits is not None]
    return ManifestInfo(
        uri=uri,
        files=tuple(footer.uri for footer in footers),
        rows=rows,
        edits=sum(counts) if len(counts) == len(readable) else None,
        columns=names,
        extra_columns=tuple(name for name in names if name not in SCHEMA.names),
        warnings=tuple(report.warnings),
    )


@dataclass(frozen=True)
class _Report:
    problems: list[str]
    warnings: list[str] = field(default_factory=list)


def _check_columns(footer: Footer, reserved: frozenset[str], report: _Report) -> None:
    names: list[str] = footer.schema.names
    extra = [name for name in names if name not in SCHEMA.names]
    at = f"{footer.uri}: column"
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            report.problems.append(f"{at} {name!r} occurs {names.count(name)} times")
    for name in [name for name in MEANING if name not in names]:
        hint = ""
        if near := nearest(name, extra, cutoff=0.6):
            extra.remove(near)
            hint = f". Rename {near!r}, if that is what it holds"
        elif name == "edits" and "prompt" in extra:
            extra.remove("prompt")
            hint = ". `retake manifest` makes a manifest of a table with one prompt a row"
        report.problems.append(f"{at} {name!r} is missing; expected {MEANING[name]}{hint}")
    for column in footer.schema:
        if column.name == "edits":
            _check_edits(at, column.type, report)
        elif column.name in SCHEMA.names and not fits(column.type, SCHEMA.field(column.name)):
            wanted = MEANING.get(column.name, SCHEMA.field(column.name).type)
            report.problems.append(
                f"{at} {column.name!r} has type {column.type}; expected {wanted}"
            )
    for name in extra:
        if name in reserved:
            report.problems.append(f"{at} {name!r} is also a column of the results; rename it")
        elif near := nearest(name, SCHEMA.names):
            report.warnings.append(
                f"{at} {name!r} passes through as it is; {near!r} is a known name"
            )


def _check_edits(at: str, found: pa.DataType, report: _Report) -> None:
    at = f"{at} 'edits'"
    element = found.value_type if is_list(found) else None
    if element is None or not pa.types.is_struct(element):
        hint = ""
        if element is not None and is_string(element):
            hint = '. Turn each prompt into {"prompt": prompt}, or let `retake manifest` do it'
        report.problems.append(f"{at} has type {found}; expected {MEANING['edits']}{hint}")
        return
    names = [element.field(index).name for index in range(element.num_fields)]
    if "prompt" not in names:
        report.problems.append(f"{at} has no field 'prompt' (string); it has {', '.join(names)}")
    for name in [name for name in names if name not in EDIT_FIELDS]:
        if near := nearest(name, [known for known in EDIT_FIELDS if known not in names]):
            report.problems.append(f"{at} has an unknown field {name!r}; did you mean {near!r}?")
        else:
            report.warnings.append(f"{at} has a field {name!r} that has no meaning here")
    for wanted in EDIT:
        if wanted.name in names and not fits(element.field(wanted.name).type, wanted):
            report.problems.append(
                f"{at}, field {wanted.name!r} has type {element.field(wanted.name).type}; "
                f"expected {wanted.type}"
            )


def _compare(other: Footer, first: Footer, report: _Report) -> None:
    ours, theirs = (dict(zip(f.schema.names, f.schema.types, strict=True)) for f in (other, first))
    for name in dict.fromkeys([*theirs, *ours]):
        if ours.get(name) != theirs.get(name):
            report.problems.append(
                f"{other.uri}: column {name!r} is {ours.get(name, 'missing')}, but in "
                f"{first.uri} it is {theirs.get(name, 'missing')}; the files must agree"
            )
