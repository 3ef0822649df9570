"""From the records of a table, of files or of samples to entries, one for each edit."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa

from cluster.rows import NO_FILES
from jobs.errors import ConvertError, nearest
from jobs.manifest.conversion.columns import Columns
from jobs.manifest.conversion.records import Entry, Record
from jobs.manifest.conversion.sources import Source
from jobs.manifest.conversion.videos import absolute_video
from jobs.manifest.schema import EDIT, EDIT_FIELDS, SCHEMA
from pipeline.storage import from_json

OF_COLUMNS = ("mask", "instruction")
"""Of an edit, what a column of another name may hold."""
SETTINGS = tuple(
    n for n in SCHEMA.names if n not in ("video", "video_id", "source_prompt", "edits", "mask")
)
WISHES = tuple(name for name in EDIT_FIELDS if name not in ("prompt", *OF_COLUMNS))
NUMBERS = {
    column.name
    for column in (*SCHEMA, *EDIT)
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
}
TEXT_OF_LIST = re.compile(r"""\s*\[\s*['"{].*['"}]\s*\]\s*""", re.DOTALL)
"""Of prompts or objects; a prompt may begin with a bracket."""
TEXT_OF_ARRAY = re.compile(r"""['"]\s+['"]""")
OTHER_MEANING = ("video", "prompt", "source_prompt", "edits", *OF_COLUMNS)
"""Names of the manifest's own that another column was taken for."""


def record_entries(
    source: Source, records: Iterable[Record], columns: Columns, given: Sequence[str] = ()
) -> Iterator[Entry]:
    """The entries of each record.

    Columns with names of the manifest's own (`video_id`, `seed`, `fps`, ...) have their meaning
    there. `edit_id`, `negative_prompt`, `guidance_scale` and `seed` beside one prompt belong to
    that edit. `edits` is a list of prompts or of objects. A mask and an instruction beside several
    edits are those of all, or a list with one for each. Other columns pass through.

    Args:
        given: prompts that every record gets, after its own.
    """
    for record in records:
        try:
            yield from _entries(source, record, columns, given)
        except ConvertError as error:
            source.problems.append(f"{record.place}: {error}")


def own_cells(records: Iterable[Record]) -> list[str]:
    """The columns that have the meaning of the manifest's, beside the video and the prompts."""
    names = {n for record in records for n, value in record.values.items() if value is not None}
    return [name for name in dict.fromkeys(("video_id", *WISHES, *SETTINGS)) if name in names]


def _entries(
    source: Source, record: Record, columns: Columns, given: Sequence[str]
) -> Iterator[Entry]:
    values = dict(record.values)
    name, uri = _video(source, record, values, columns)
    beside = {"mask": values.pop(columns.mask, None) if columns.mask else None}
    if columns.instruction and columns.instruction not in columns.prompts:
        beside["instruction"] = values.pop(columns.instruction, None)
    cells = {column: values.pop(column, None) for column in columns.prompts}
    source_prompt = columns.source_prompt
    settings = {"source_prompt": None if source_prompt is None else values.pop(source_prompt, None)}
    video_id = _id(values.pop("video_id", None))
    wishes = {name: _number(name, values.pop(name, None)) for name in WISHES}
    wishes["edit_id"] = _id(wishes["edit_id"])
    settings |= {name: _number(name, values.pop(name, None)) for name in SETTINGS}
    extra = {
        f"table_{n}" if n in OTHER_MEANING else n: value
        for n, value in values.items()
        if n not in OTHER_MEANING or value is not None
    }
    edits = _own_edits(record.place, cells)
    if len(edits) + len(given) > 1 or isinstance(cells.get("edits"), list):
        # what stands beside several edits holds for all of them, and the seed for the video
        settings["seed"] = wishes.pop("seed")
        if wishes["edit_id"] is not None:
            raise ConvertError(
                f"edit_id {wishes['edit_id']!r} is the name of one edit; expected one `prompt` "
                "beside it, or an `edit_id` in each object of `edits`"
            )
    more_of = _shared_out(beside, len(edits) + len(given))
    for (at, edit), also in zip(edits, more_of, strict=False):
        if not isinstance(edit, dict):
            source.problems.append(f"{at}: {edit!r} is neither a prompt nor an object")
        elif misplaced := sorted(edit.keys() & {*SCHEMA.names} - {*EDIT_FIELDS}):
            source.problems.append(f"{at}: {misplaced[0]!r} belongs to the video, not the edit")
        else:
            if columns.instruction in columns.prompts and isinstance(edit.get("prompt"), str):
                also["instruction"] = edit["prompt"]
            own = {k: v for k, v in edit.items() if k in EDIT_FIELDS}
            more = {k: v for k, v in edit.items() if k not in EDIT_FIELDS}
            edit = _with_located_mask(source, record, {**wishes, **also, **own})
            yield Entry(at, name, uri, edit, video_id, settings, {**extra, **more})
    for number, (prompt, also) in enumerate(zip(given, more_of[len(edits) :], strict=True), 1):
        at, edit = f"{record.place}, prompt {number}", {**wishes, **also, "prompt": prompt}
        edit = _with_located_mask(source, record, edit)
        yield Entry(at, name, uri, edit, video_id, settings, extra, given=number)


def _shared_out(beside: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """For each of `count` edits what stands beside them.

    Raises:
        ConvertError: a list of another length than they are.
    """
    parts: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, cell in beside.items():
        values = _list(cell)
        if isinstance(values, list) and len(values) != count:
            raise ConvertError(
                f"{len(values)} {name}s beside {count} edits; expected one, or one for each"
            )
        for number, part in enumerate(parts):
            part[name] = values[number] if isinstance(values, list) else values
    return parts


def _with_located_mask(source: Source, record: Record, edit: dict[str, Any]) -> dict[str, Any]:
    """The same with its mask where it lies: beside the table, as its video."""
    mask = edit.get("mask")
    if not isinstance(mask, str) or mask in NO_FILES or not mask.strip():
        return {**edit, "mask": mask or None}
    return {**edit, "mask": absolute_video(mask.strip(), record.base)}


def _video(
    source: Source, record: Record, values: dict[str, Any], columns: Columns
) -> tuple[Any, Any]:
    """The video's name in the source, and where it lies."""
    if record.uri is not None or columns.video is None:
        return record.name, record.uri
    if columns.video not in values:
        near = nearest(columns.video, values, cutoff=0.6)
        raise ConvertError(
            f"there is no {columns.video!r}" + (f" (is it {near!r}?)" if near else "")
        )
    name = values.pop(columns.video)
    if (
        isinstance(name, dict) and {"bytes", "path"} >= name.keys()
    ):  # as the library datasets has it
        if name.get("bytes") is not None:
            raise ConvertError(
                f"{columns.video!r} holds the bytes of a video; a manifest names files. Write the "
                "videos into a folder and give that"
            )
        name = name.get("path")
    name = name.strip() if isinstance(name, str) else name
    return name, source.locate(name, record.base)


def _own_edits(place: str, cells: dict[str, Any]) -> list[tuple[str, Any]]:
    """The edits that a record names itself, each with its place."""
    filled = {column: cell for column, cell in cells.items() if cell is not None and cell != ""}
    if {"prompt", "edits"} <= filled.keys():
        raise ConvertError("expected a `prompt`, or `edits`, a filled list, and not both")
    if cells and not filled:
        return [(place, {"prompt": None})]  # refused by the check of the row
    edits: list[tuple[str, Any]] = []
    for column, cell in filled.items():
        items = _list(cell)
        at = f"{place}, {column}" if len(filled) > 1 else place
        if not isinstance(items, list) and column != "edits":
            edits.append((at, {"prompt": items}))
        elif isinstance(items, list) and items:
            for number, item in enumerate(items, 1):
                edit = {"prompt": item} if isinstance(item, str) else item
                edits.append((f"{at}, edit {number}", edit))
        else:
            raise ConvertError(f"expected a `prompt`, or `{column}`, a filled list; got {items!r}")
    return edits


def _list(cell: Any) -> Any:
    """A list that a CSV has as the text of one, in JSON or as pandas writes it.

    Raises:
        ConvertError: it is the text of an array, in which no comma says where a prompt ends.
    """
    if not isinstance(cell, str) or not TEXT_OF_LIST.fullmatch(cell):
        return cell
    with suppress(json.JSONDecodeError):
        return from_json(cell)
    if TEXT_OF_ARRAY.search(cell):
        raise ConvertError(
            f"{cell!r} is the text of an array; expected a list in JSON, or a row for each prompt"
        )
    with suppress(ValueError, SyntaxError):
        return ast.literal_eval(cell)
    return cell


def _id(value: Any) -> Any:
    """A whole number that serves as an id is its digits; Parquet and JSON have such."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _number(name: str, value: Any) -> Any:
    """A number from the text of a CSV cell; what is none is left for the row check to refuse."""
    if name not in NUMBERS or not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
