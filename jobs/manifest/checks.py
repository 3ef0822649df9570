"""The manifest: a Parquet file, or a folder of them, with one row for each video.

`SCHEMA` is its form. `check_manifest` reads the footers alone and refuses, in one message that
lists every problem, a manifest that no job could run from; what is wrong with single rows is
found later, by `cluster.rows`. `write_manifest` writes one.

Columns that `SCHEMA` does not name travel to the results unchanged.
"""

from __future__ import annotations

import difflib
import io
import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

EDIT = pa.struct(
    [
        pa.field("edit_id", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("negative_prompt", pa.string()),
        pa.field("guidance_scale", pa.float64()),
        pa.field("seed", pa.int64()),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),
        pa.field("video_id", pa.string()),
        pa.field("source_prompt", pa.string()),
        pa.field("edits", pa.list_(EDIT)),
        pa.field("start_frame", pa.int64()),
        pa.field("num_frames", pa.int64()),
        pa.field("fps", pa.float64()),
        pa.field("seed", pa.int64()),
    ]
)
MEANING = {
    "video": "string, the path or URI of the video file",
    "edits": f"{SCHEMA.field('edits').type}; only `prompt` is needed",
}


class ManifestError(ValueError):
    """The manifest cannot be used; the text lists every reason."""


@dataclass(frozen=True)
class ManifestInfo:
    """What the footers of a manifest tell.

    Attributes:
        files: its Parquet files, as URIs; plain absolute paths if they are local.
        edits: how many edits have a prompt; None if the writer left out the statistics.
        extra_columns: the columns that travel to the results.
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
    uri: str,
    storage_options: dict[str, Any] | None = None,
    *,
    reserved: frozenset[str] = frozenset(),
    leave_out: str | None = None,
) -> ManifestInfo:
    """Read the footers of the manifest and check them.

    Args:
        uri: a file or a folder of `*.parquet` files, local or of any fsspec protocol.
        storage_options: given to fsspec.
        reserved: names that the results use themselves; no extra column may have one.
        leave_out: a folder whose files are none of the manifest's, where it lies in the manifest's
            own: a job's output.

    Raises:
        ManifestError: missing, empty, not Parquet, a column missing or of the wrong type, files
            that differ, an extra column with a reserved name.
    """
    fs, paths = _find_files(uri, storage_options or {}, leave_out)
    with ThreadPoolExecutor(16) as pool:
        footers = list(pool.map(lambda path: _read_footer(fs, path), paths))
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
        raise _refusal(uri, report.problems)
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


def write_manifest(
    rows: pa.Table | Iterable[Mapping[str, Any]],
    uri: str,
    storage_options: dict[str, Any] | None = None,
) -> None:
    """Write a manifest as one Parquet file (zstd).

    All of SCHEMA's columns come first, in its order, then the others as they first occur. A list
    of rows may hold anything JSON in its other columns: one that mixes types or holds objects is
    stored as JSON text.

    Raises:
        ManifestError: no rows, a value that does not fit its column, or the storage refuses.
    """
    if isinstance(rows, pa.Table):
        columns = {name: rows[name] for name in rows.column_names}
        columns |= {n: c.to_pylist() for n, c in columns.items() if n in SCHEMA.names}
        count = rows.num_rows
    else:
        records = list(rows)
        names = dict.fromkeys(name for record in records for name in record)
        columns = {name: [record.get(name) for record in records] for name in names}
        count = len(records)
    if not count:
        raise _refusal(uri, ["there are no rows"], "written")
    extra = [name for name in columns if name not in SCHEMA.names]
    arrays, problems = [], []
    for name in (*SCHEMA.names, *extra):
        try:
            arrays.append(_column(name, columns.get(name, [None] * count)))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            problems.append(f"column {name!r}: {error}")
    if None in columns.get("video", [None]):
        problems.append("column 'video': a row has none; expected a path or URI in each")
    if problems:
        raise _refusal(uri, problems, "written")
    travelling = zip(extra, arrays[len(SCHEMA) :], strict=True)
    schema = pa.schema([*SCHEMA, *(pa.field(name, array.type) for name, array in travelling)])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), buffer, compression="zstd")
    try:
        fs, path = fsspec.core.url_to_fs(uri, **(storage_options or {}))
        if isinstance(fs, LocalFileSystem):
            fs.makedirs(posixpath.dirname(path), exist_ok=True)
        fs.pipe_file(path, buffer.getvalue())
    except Exception as error:  # each storage has its own kinds of failure
        raise _refusal(uri, [f"{type(error).__name__}: {error}"], "written") from error


def fs_uri(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """`path` of `fs` as a URI that stands alone; a local one stays a plain path."""
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def nearest(name: str, known: Iterable[str], cutoff: float = 0.8) -> str | None:
    """The known name that `name` most likely was meant to be, or None if none is near."""
    lowered = {other.lower(): other for other in known}
    found = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=cutoff)
    return lowered[found[0]] if found else None


@dataclass(frozen=True)
class _Footer:
    uri: str
    schema: Any = None  # pa.Schema, or None if the file is damaged
    rows: int = 0
    edits: int | None = None
    damage: str | None = None


@dataclass(frozen=True)
class _Report:
    problems: list[str]
    warnings: list[str] = field(default_factory=list)


def _find_files(uri: str, options: dict[str, Any], leave_out: str | None) -> tuple[Any, list[str]]:
    try:
        fs, path = fsspec.core.url_to_fs(uri, **options)
        if fs.isfile(path):
            return fs, [path]
        there = fs.exists(path)
        found = fs.find(path) if there else []
    except ImportError as error:
        hint = f"{error}; the extras retake[s3] and retake[gcs] install what S3 and GCS need"
        raise _refusal(uri, [hint]) from error
    except Exception as error:  # each storage has its own kinds of failure
        raise _refusal(uri, [f"it cannot be read: {type(error).__name__}: {error}"]) from error
    if not there:
        raise _refusal(uri, ["there is no such file or folder; expected a Parquet file"])
    if leave_out:
        other = fsspec.core.url_to_fs(leave_out)[1].rstrip("/") + "/"
        here = path.rstrip("/") + "/"
        if other == here:
            other += "results/"
        if other.startswith(here):
            found = [path for path in found if not path.startswith(other)]
    paths = [path for path in sorted(found) if path.endswith((".parquet", ".pq"))]
    if not paths:
        names = ", ".join(posixpath.basename(path) for path in found[:3]) or "nothing"
        raise _refusal(uri, [f"the folder has no *.parquet file; it has {names}"])
    return fs, paths


def _read_footer(fs: fsspec.AbstractFileSystem, path: str) -> _Footer:
    uri = fs_uri(fs, path)
    head = b""
    try:
        with fs.open(path, "rb") as file:
            head = file.read(4)
            file.seek(0)
            parquet = pq.ParquetFile(file)
            rows, edits = parquet.metadata.num_rows, _count_edits(parquet.metadata)
            return _Footer(uri, parquet.schema_arrow, rows, edits)
    except pa.ArrowException as error:
        damage = f"the Parquet file is truncated or damaged: {error}"
        if not head:
            damage = "the file is empty (0 bytes); expected Parquet"
        elif head != b"PAR1":
            damage = f"the file is not Parquet: it begins with {head!r}; `retake manifest` makes "
            damage += "a manifest from CSV, JSON or a folder of videos"
    except Exception as error:  # each storage has its own kinds of failure
        damage = f"the file cannot be read: {type(error).__name__}: {error}"
    return _Footer(uri, damage=damage)


def _count_edits(metadata: pq.FileMetaData) -> int | None:
    """The prompts that are not null, from the statistics of their column."""
    total = 0
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            path = chunk.path_in_schema.split(".")  # edits.list.element.prompt
            if (path[0], path[-1]) == ("edits", "prompt"):
                if chunk.statistics is None:
                    return None
                total += chunk.statistics.num_values
    return total


def _check_columns(footer: _Footer, reserved: frozenset[str], report: _Report) -> None:
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
        elif column.name in SCHEMA.names and not _fits(column.type, SCHEMA.field(column.name)):
            wanted = MEANING.get(column.name, SCHEMA.field(column.name).type)
            report.problems.append(
                f"{at} {column.name!r} has type {column.type}; expected {wanted}"
            )
    for name in extra:
        if name in reserved:
            report.problems.append(f"{at} {name!r} is also a column of the results; rename it")
        elif near := nearest(name, SCHEMA.names):
            report.warnings.append(f"{at} {name!r} travels as it is; {near!r} is a known name")


def _check_edits(at: str, found: pa.DataType, report: _Report) -> None:
    at = f"{at} 'edits'"
    element = found.value_type if _is_list(found) else None
    if element is None or not pa.types.is_struct(element):
        hint = ""
        if element is not None and _is_string(element):
            hint = '. Turn each prompt into {"prompt": prompt}, or let `retake manifest` do it'
        report.problems.append(f"{at} has type {found}; expected {MEANING['edits']}{hint}")
        return
    names = [element.field(index).name for index in range(element.num_fields)]
    known = [wanted.name for wanted in EDIT]
    unknown = [name for name in names if name not in known]
    if "prompt" not in names:
        report.problems.append(f"{at} has no field 'prompt' (string); it has {', '.join(names)}")
    for name in unknown:
        if near := nearest(name, [name for name in known if name not in names]):
            report.problems.append(f"{at} has an unknown field {name!r}; did you mean {near!r}?")
        else:
            report.warnings.append(f"{at} has a field {name!r} that has no meaning here")
    for wanted in EDIT:
        if wanted.name in names and not _fits(element.field(wanted.name).type, wanted):
            report.problems.append(
                f"{at}, field {wanted.name!r} has type {element.field(wanted.name).type}; "
                f"expected {wanted.type}"
            )


def _fits(found: pa.DataType, wanted: pa.Field) -> bool:
    """Whether values of `found` can be used; the row check looks at each value again."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_null(found):
        return wanted.name not in ("video", "prompt")
    if _is_string(wanted.type):
        return _is_string(found)
    # a whole number may come as a float: pandas stores it so when some are missing
    return bool(pa.types.is_integer(found) or pa.types.is_floating(found))


def _is_string(found: pa.DataType) -> bool:
    return str(found) in ("string", "large_string", "string_view")


def _is_list(found: pa.DataType) -> bool:
    return isinstance(found, pa.ListType | pa.LargeListType | pa.FixedSizeListType)


def _compare(other: _Footer, first: _Footer, report: _Report) -> None:
    ours, theirs = (dict(zip(f.schema.names, f.schema.types, strict=True)) for f in (other, first))
    for name in dict.fromkeys([*theirs, *ours]):
        if ours.get(name) != theirs.get(name):
            report.problems.append(
                f"{other.uri}: column {name!r} is {ours.get(name, 'missing')}, but in "
                f"{first.uri} it is {theirs.get(name, 'missing')}; the files must agree"
            )


def _column(name: str, values: Any) -> pa.Array | pa.ChunkedArray:
    if name in SCHEMA.names:
        return pa.array(values, SCHEMA.field(name).type)
    if isinstance(values, pa.ChunkedArray):
        return values
    try:
        array = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
        array = None
    if array is None or "struct<" in str(array.type):
        # Arrow would give every object the keys of all the others
        return pa.array([v if v is None else _json_text(v) for v in values], pa.string())
    return array.cast(pa.string()) if pa.types.is_null(array.type) else array


def _json_text(value: Any) -> str:
    """A string as it is, and anything else as JSON; so a string that has no bytes, too."""
    if isinstance(value, str):
        with suppress(UnicodeEncodeError):  # half of a surrogate pair
            value.encode()
            return value
    return json.dumps(value, default=str)


def _refusal(uri: str, problems: Sequence[str], done: str = "used") -> ManifestError:
    listed = "".join(f"\n  - {problem}" for problem in problems)
    return ManifestError(f"the manifest {uri} cannot be {done}:{listed}")
