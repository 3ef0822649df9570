"""The lines of a table: CSV, TSV, JSON, JSONL (also gzipped), Parquet and Arrow."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.results.schema import plain_rows
from jobs.errors import ConvertError
from jobs.manifest.conversion.records import reading
from pipeline.storage import from_json, open_file

GZIP = b"\x1f\x8b"
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
DELIMITERS = ",;\t|"
HEAD_BYTES = 1 << 16
WRAPPERS = ("data", "rows", "samples", "items", "videos", "examples", "entries", "annotations")
"""Names under which a JSON file may have its list of records."""


def read_table(uri: str, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """Each line or entry of a file, with its place: "line 12", "entry 3" or "row 7".

    Args:
        problems: gets what is wrong with single lines of JSONL.

    Raises:
        ConvertError: the file cannot be read as a whole.
    """
    with reading(uri), open_file(uri) as file:
        content = file.read()
    if content.startswith((b"PAR1", b"ARROW1")) or uri.endswith(".arrow"):
        yield from _rows(uri, content)
        return
    text = _decode(uri, _unzip(uri, content))
    start = text.lstrip()[:1]
    if not start:
        raise ConvertError(f"{uri} is empty; expected names of columns, and a row for each video")
    if start not in "[{":
        yield from _csv_lines(text, uri)
        return
    try:
        data = from_json(text)
    except json.JSONDecodeError as error:
        if start == "[":
            raise ConvertError(f"{uri} is not valid JSON: {error}") from error
        yield from _json_lines(text, problems)
    else:
        for number, record in enumerate(_entries(data), 1):
            yield f"entry {number}", record


def read_text(uri: str) -> str:
    """The text of a file, in UTF-8 or, with a byte order mark, UTF-16; it may be gzipped."""
    with reading(uri), open_file(uri) as file:
        content = file.read()
    return _decode(uri, _unzip(uri, content))


def read_head(uri: str) -> bytes:
    """The first bytes of a file, unpacked where it is gzipped, as UTF-8 where it has a mark."""
    with reading(uri), open_file(uri) as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(GZIP):
        with reading(uri), open_file(uri) as file, gzip.open(file) as unpacked:
            head = unpacked.read(HEAD_BYTES)
    if head.startswith(UTF_16):
        return head[: len(head) & ~1].decode("utf-16", "replace").encode()
    return head.removeprefix(codecs.BOM_UTF8)


def _rows(uri: str, content: bytes) -> Iterator[tuple[str, Any]]:
    try:
        if content.startswith(b"PAR1"):
            table = pq.read_table(io.BytesIO(content))
        elif content.startswith(b"ARROW1"):
            table = pa.ipc.open_file(content).read_all()
        else:  # as the library datasets saves it
            table = pa.ipc.open_stream(content).read_all()
    except MemoryError:  # Arrow's is an ArrowException too, and no damage
        raise
    except (pa.ArrowException, OSError) as error:
        raise ConvertError(f"{uri} is damaged: {error}") from error
    names = table.column_names
    _refuse_double_names(uri, names)
    for number, row in enumerate(plain_rows(table), 1):
        yield f"row {number}", row


def _unzip(uri: str, content: bytes) -> bytes:
    if not content.startswith(GZIP):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise ConvertError(f"{uri} is a damaged gzip file: {error}") from error


def _decode(uri: str, content: bytes) -> str:
    encoding = "utf-16" if content.startswith(UTF_16) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        name = posixpath.basename(uri)
        raise ConvertError(
            f"{uri} is not UTF-8 text: line {line} has the byte 0x{content[error.start]:02x}. "
            'Save it as UTF-8 (in Excel, "CSV UTF-8"), or turn it from Latin-1: '
            f"iconv -f latin1 -t utf-8 {name} > utf8-{name}"
        ) from error


def _csv_lines(text: str, uri: str) -> Iterator[tuple[str, Any]]:
    skipped = 0
    if text[:4].lower() == "sep=":  # Excel writes so which delimiter follows
        text, skipped = text.partition("\n")[2], 1
    table = text.lstrip("\r\n")
    skipped += len(text[: len(text) - len(table)].splitlines())
    text = table
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    try:
        reader.fieldnames, unnamed = _column_names(reader.fieldnames or ())
        _refuse_double_names(uri, list(reader.fieldnames))
        for record in reader:
            if any(record.values()):
                place = f"line {reader.line_num + skipped}"
                yield (
                    place,
                    {n: cell or None for n, cell in record.items() if cell or n not in unnamed},
                )
    except csv.Error as error:
        line = reader.line_num + skipped
        raise ConvertError(f"{uri} is not valid CSV, line {line}: {error}") from error


def _column_names(header: Sequence[str]) -> tuple[list[str], set[str]]:
    """The names in a header, and those of them that were made up.

    The first column has none where pandas wrote its index, and the last where lines end in a comma.
    """
    names = [name.strip() or f"column_{number}" for number, name in enumerate(header, 1)]
    given = {name.strip() for name in header}
    return names, {name for name in names if name not in given}


def _delimiter(text: str) -> str:
    """The one that parts the header into the most names; a quoted name may have others in it."""

    def names(delimiter: str) -> int:
        try:
            return len(next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), ()))
        except csv.Error:
            return 0

    return max(DELIMITERS, key=names)


def _refuse_double_names(uri: str, names: list[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1 and name:
            raise ConvertError(
                f"{uri}: {count} columns are called {name!r}; only one of them would be read. "
                "Rename them; several prompts of a video take a row each"
            )


def _entries(data: Any) -> list[Any]:
    """The records of a JSON file: a list, one under a name, or what the videos' names lead to.

    That is an object with columns, a prompt, or a list of edits.
    """
    if isinstance(data, dict):
        lists = [data[name] for name in WRAPPERS if _holds_objects(data.get(name))]
        if len(lists) == 1:
            return list(lists[0])
        if data and all("." in name for name in data):
            if all(isinstance(value, dict) for value in data.values()):
                return [{"video": name, **value} for name, value in data.items()]
            if all(isinstance(value, str | list) for value in data.values()):
                return [
                    {"video": name, "edits" if isinstance(value, list) else "prompt": value}
                    for name, value in data.items()
                ]
    return data if isinstance(data, list) else [data]


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _json_lines(text: str, problems: list[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        try:
            if line.strip():
                yield f"line {number}", from_json(line)
        except json.JSONDecodeError as error:
            problems.append(f"line {number}: not valid JSON: {error}")
