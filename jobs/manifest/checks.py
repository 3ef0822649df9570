"""What a manifest must be before a job runs from it: a Parquet file, or a folder of them.

`check_manifest` reads the footers alone and refuses, in one message that lists every problem, a
manifest that no job could run from; what is wrong with single rows is found later, by
`cluster.rows`. Columns that the schema does not name pass through to the results unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from cluster.manifest import ManifestFiles
from jobs.errors import nearest
from jobs.manifest.files import find_files, refusal
from jobs.manifest.footers import Footer, read_footers
from jobs.manifest.schema import (
    EDIT,
    EDIT_FIELDS,
    MEANING,
    OF_OPTIONAL,
    SCHEMA,
    fits,
    is_list,
    is_string,
)
from jobs.manifest.unified import Unified, unify

LIKE_A_VIDEO = ("path", "uri", "url", "file", "clip", "mp4", "src", "movie", "media")
"""What is in the names that others give to the column `video`."""
LIKE_A_PROMPT = ("prompt", "caption", "text", "instruction", "description")


@dataclass(frozen=True)
class ManifestInfo:
    """What the footers of a manifest tell.

    Args:
        files: its Parquet files, by URI or plain absolute path, and how their rows are read.
        base: the folder or URI that relative videos are relative to.
        edits: how many edits have a prompt; None if the writer left out the statistics.
        extra_columns: the columns that pass through to the results.
        warnings: extra columns and fields that look like a misspelt known one.
    """

    uri: str
    files: ManifestFiles
    base: str
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
        uri: a file, a folder of `*.parquet` files with its Hive folders, or a glob; local or of
            any fsspec protocol.
        reserved: names that the results use themselves; no extra column may have one.
        leave_out: a folder whose files are none of the manifest's, where it lies in the manifest's
            own: a job's output.

    Raises:
        ManifestError: missing, empty, not Parquet, a column missing or of the wrong type, files
            that differ, an extra column with a reserved name.
    """
    found = find_files(uri, leave_out)
    footers = read_footers(found)
    report = _Report([f"{footer.uri}: {footer.damage}" for footer in footers if footer.damage])
    readable = [footer for footer in footers if _has_columns(footer, report)]
    # What writers give to a file without rows are hardly types.
    full = [footer for footer in readable if footer.rows]
    if readable and not full:
        listed = ", ".join(readable[0].schema.names)
        report.problems.append(
            f"{uri}: has no rows; expected one for each video. Its columns are {listed}"
        )
    if not full:
        raise refusal(uri, report.problems)
    unified = unify(full, report.problems)
    _check_columns(unified, reserved, report)
    if report.problems:
        raise refusal(uri, report.problems)
    columns = tuple(unified.files.schema.names)
    counts = [footer.edits for footer in full if footer.edits is not None]
    return ManifestInfo(
        uri=uri,
        files=unified.files,
        base=found.base,
        rows=sum(footer.rows for footer in full),
        edits=sum(counts) if len(counts) == len(full) else None,
        columns=columns,
        extra_columns=tuple(name for name in columns if name not in SCHEMA.names),
        warnings=tuple(report.warnings),
    )


@dataclass(frozen=True)
class _Report:
    problems: list[str]
    warnings: list[str] = field(default_factory=list)


def _has_columns(footer: Footer, report: _Report) -> bool:
    """Whether the columns of a file can be told apart."""
    names = [] if footer.damage else footer.schema.names
    twice = {name: names.count(name) for name in names if names.count(name) > 1}
    for name, count in twice.items():
        report.problems.append(f"{footer.uri}: column {name!r} occurs {count} times")
    return not footer.damage and not twice


def _check_columns(unified: Unified, reserved: frozenset[str], report: _Report) -> None:
    schema = unified.files.schema
    extra = [name for name in schema.names if name not in SCHEMA.names]
    first = unified.source[schema.names[0]].uri
    for name in [name for name in MEANING if name not in schema.names]:
        meant, hint = _meant(name, extra)
        extra = [other for other in extra if other != meant]
        report.problems.append(
            f"{first}: column {name!r} is missing; expected {MEANING[name]}{hint}"
        )
    for column in schema:
        at = f"{unified.source[column.name].uri}: column {column.name!r}"
        if column.name == "edits":
            _check_edits(at, column.type, report)
        elif column.name in SCHEMA.names and not fits(column.type, SCHEMA.field(column.name)):
            known = SCHEMA.field(column.name).type
            wanted = MEANING.get(column.name) or OF_OPTIONAL.get(column.name, known)
            report.problems.append(f"{at} has type {column.type}; expected {wanted}")
    for name in extra:
        at = f"{unified.source[name].uri}: column {name!r}"
        if name in reserved:
            inside = name in EDIT_FIELDS
            way = (
                f"{name!r} is a field of each edit: move it there, or rename"
                if inside
                else "rename"
            )
            report.problems.append(f"{at} is also a column of the results; {way} it")
        elif near := nearest(name, SCHEMA.names):
            report.warnings.append(f"{at} passes through as it is; {near!r} is a known name")
        elif name.lower() == "caption":
            report.warnings.append(
                f"{at} passes through as it is; what describes the source is 'source_prompt'"
            )


def _meant(name: str, extra: list[str]) -> tuple[str | None, str]:
    """The column that may be the missing one, and the way out."""
    near = nearest(name, extra, cutoff=0.6)
    like = LIKE_A_VIDEO if name == "video" else LIKE_A_PROMPT
    alike = next((e for part in like for e in extra if part in e.lower()), None)
    if name == "edits" and alike and not near:
        return alike, (
            f". If {alike!r} says what the edited video should show, `retake manifest` makes a "
            "manifest of a table with one prompt a row"
        )
    if meant := near or alike:
        return meant, f". Rename {meant!r}, if that is what it holds"
    others = f"It has {', '.join(map(repr, extra))}" if extra else "It has no other column"
    return None, f". {others}; `retake manifest` makes a manifest of videos or of a table"


def _check_edits(at: str, found: pa.DataType, report: _Report) -> None:
    element = found.value_type if is_list(found) else None
    if element is None or not pa.types.is_struct(element):
        hint = ""
        if element is not None and is_string(element):
            hint = '. Turn each prompt into {"prompt": prompt}, or let `retake manifest` do it'
        elif is_string(found):
            hint = ". For a table with one prompt a row, `retake manifest` makes the manifest"
        report.problems.append(f"{at} has type {found}; expected {MEANING['edits']}{hint}")
        return
    names = [element.field(index).name for index in range(element.num_fields)]
    if "prompt" not in names:
        report.problems.append(f"{at} has no field 'prompt' (string); it has {', '.join(names)}")
    for name in [name for name in names if name not in EDIT_FIELDS]:
        if near := nearest(name, [known for known in EDIT_FIELDS if known not in names]):
            report.problems.append(f"{at} has an unknown field {name!r}; did you mean {near!r}?")
        else:
            report.warnings.append(
                f"{at} has a field {name!r} that has no meaning here; known are "
                f"{', '.join(EDIT_FIELDS)}"
            )
    for wanted in EDIT:
        if wanted.name in names and not fits(element.field(wanted.name).type, wanted):
            report.problems.append(
                f"{at}, field {wanted.name!r} has type {element.field(wanted.name).type}; "
                f"expected {wanted.type}"
            )
