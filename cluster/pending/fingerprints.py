"""The fingerprints of a manifest's edits by columns: 10^6 in some seconds.

The row check takes 100 times as long. It is for rows that groups are going to work on; whether an
edit is done is known from its fingerprint alone. What is computed here is what `Job` computes from
a checked row. A row that the check would refuse may have any fingerprint here: no result has it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from itertools import repeat
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cluster.job import Job, digest, fingerprint_of, used_mask
from cluster.pending.ids import Edits, column_of, edits_of, video_ids
from cluster.results.schema import plain_values
from cluster.rows import NO_FILES, WISHES, default_edit_id, mask_of, real_number, whole_number
from pipeline.errors import RowError
from pipeline.locations import resolve_uri
from pipeline.records import EditSpec

Values = Sequence[Any]
FIELDS = tuple(f.name for f in fields(EditSpec) if f.name != "instruction")
"""Of an edit, what its id or its fingerprint is made of."""


class EditKeys(NamedTuple):
    """What identifies each edit of some rows, [edits] each, in order.

    Args:
        video_id, edit_id: None where there is none.
        fingerprint: empty for a second edit of the same id, which the check refuses.
    """

    video_id: list[str | None]
    edit_id: list[str | None]
    fingerprint: list[str]


def edit_keys(job: Job, job_fingerprint: str, table: pa.Table) -> EditKeys:
    """The keys of all edits of a table's rows."""
    edits = edits_of(table)
    if not pa.types.is_struct(edits.values.type):  # the check refuses all of them
        count = len(edits.values)
        return EditKeys([None] * count, [None] * count, [""] * count)
    ids = video_ids(table)
    places = edits.rows.tolist()
    own = [ids[place] for place in places]
    values = {name: _child(edits, name) for name in FIELDS}
    values["edit_id"] = _edit_ids(values)
    texts = _texts(job, job_fingerprint, table, values, places)
    prints = list(map(digest, texts))
    _without_repeated(own, values["edit_id"], prints)
    return EditKeys(own, values["edit_id"], prints)


def edit_ids(edits: Edits) -> list[str | None]:
    """The id of each edit, given or by default, [edits]; None where an edit is no struct."""
    if not pa.types.is_struct(edits.values.type):
        return [None] * len(edits.values)
    return _edit_ids({name: _child(edits, name) for name in FIELDS})


def _texts(
    job: Job, job_fingerprint: str, table: pa.Table, edits: dict[str, list[Any]], places: list[int]
) -> Iterator[str]:
    """What the fingerprint of each edit is the hash of."""
    parts, order = _template(job_fingerprint)
    of_rows = _rows_written(job, table)
    text, columns = _literal(parts[0]), []
    for name, part in zip(order, parts[1:], strict=True):
        of_edit = name.removeprefix("edit.")
        if of_edit == "mask":
            values = _masks(job, edits["mask"], column_of(table, "mask"), places)
        else:
            values = of_rows[name] if of_edit == name else _WRITTEN[of_edit](edits[of_edit])
        if values and values.count(values[0]) == len(values):  # most columns are null throughout
            text += _literal(values[0])
        else:
            text += "{}"
            columns.append(values if of_edit != name else [values[place] for place in places])
        text += _literal(part)
    return map(text.format, *columns) if columns else repeat(text.format(), len(places))


def _literal(text: str) -> str:
    """A text as `str.format` gives it back."""
    return text.replace("{", "{{").replace("}", "}}")


def _template(job_fingerprint: str) -> tuple[list[str], list[str]]:
    """The text that is hashed, between the values that differ, and the names of these in order."""
    names = ("video", "start_frame", "num_frames", "fps", "seed", "source_prompt")
    row = {name: f"<{name}>" for name in names}
    text = fingerprint_of(
        job_fingerprint,
        video=row["video"],
        frames=[row[name] for name in ("start_frame", "num_frames", "fps")],
        seed=row["seed"],
        source_prompt=row["source_prompt"],
        edit={name: f"<edit.{name}>" for name in FIELDS},
    )
    # An edit without a mask has not even the name.
    text = text.replace('"mask": "<edit.mask>", ', '"<edit.mask>"')
    found = re.split(r'"<([\w.]+)>"', text)
    return found[::2], found[1::2]


def _masks(job: Job, own: Values, of_rows: Values, places: list[int]) -> list[str]:
    """The mask of each edit with its name, as it stands in the text; empty where it has none."""
    resolved, how = Resolved(job.base), job.editing.reconstruction
    as_in_job, used = (None, how.mask), used_mask(how)
    if not any(one is not None for one in (*own, *of_rows)):
        return [""] * len(own)

    def written(mask: Any, of_row: Any) -> str:
        try:
            known = mask_of(mask, of_row, None)
        except RowError:
            return "refused"
        if known in as_in_job:
            return ""
        return f'"mask": {quoted((known if known in NO_FILES else resolved[known]) + used)}, '

    return [written(mask, of_rows[place]) for mask, place in zip(own, places, strict=True)]


def _rows_written(job: Job, table: pa.Table) -> dict[str, list[str]]:
    resolved = Resolved(job.base)
    videos = [
        quoted(resolved[video]) if isinstance(video, str) else "null"
        for video in column_of(table, "video")
    ]
    described = job.editing.reconstruction.reference == "source"
    prompts = column_of(table, "source_prompt") if described else [None] * table.num_rows
    numbers = {
        name: _WRITTEN[name](column_of(table, name))
        for name in ("start_frame", "num_frames", "fps", "seed")
    }
    return {"video": videos, "source_prompt": _texts_or_null(prompts), **numbers}


def _child(edits: Edits, name: str) -> list[Any]:
    """The values of one field of all edits."""
    kind = edits.values.type
    if kind.get_field_index(name) < 0:
        return [None] * len(edits.values)
    return plain_values(pa.chunked_array([pc.struct_field(edits.values, name)]))


def _edit_ids(values: dict[str, list[Any]]) -> list[str | None]:
    given = values["edit_id"]
    if None not in given:
        return given
    asked = zip(*(values[name] for name in WISHES), strict=True)
    return [
        default_edit_id(*wish) if one is None else one
        for one, wish in zip(given, asked, strict=True)
    ]


def _without_repeated(videos: list[str | None], edits: list[str | None], prints: list[str]) -> None:
    """Take the fingerprint from each edit whose id another one of its video has before it."""
    both = list(zip(videos, edits, strict=True))
    if len(set(both)) == len(both):
        return
    seen = set()
    for place, key in enumerate(both):
        if key in seen:
            prints[place] = ""
        seen.add(key)


def _texts_or_null(values: Values) -> list[str]:
    return [quoted(value) if value and isinstance(value, str) else "null" for value in values]


def _texts_or_empty(values: Values) -> list[str]:
    return [quoted(value) if isinstance(value, str) else '""' for value in values]


def _numbers(check: Callable[[Any], Any]) -> Callable[[Values], list[str]]:
    """Numbers as JSON has them, after a check that makes them what the row check makes them."""

    def written(values: Values) -> list[str]:
        if not any(value is not None for value in values):
            return ["null"] * len(values)
        return [_number(check, value) for value in values]

    return written


def _number(check: Callable[[Any], Any], value: Any) -> str:
    try:
        known = check({"": value})
    except RowError:
        return "refused"
    return "null" if known is None else repr(known)


_WRITTEN: dict[str, Callable[[Values], list[str]]] = {
    "edit_id": _texts_or_null,
    "prompt": _texts_or_empty,
    "negative_prompt": _texts_or_empty,
    "guidance_scale": _numbers(lambda row: real_number(row, "", zero=True)),
    "seed": _numbers(lambda row: whole_number(row, "", least=0)),
    "start_frame": _numbers(lambda row: whole_number(row, "", least=0)),
    "num_frames": _numbers(lambda row: whole_number(row, "", least=1)),
    "fps": _numbers(lambda row: real_number(row, "", zero=False)),
}


class Resolved:
    """`resolve_uri` for many locations, which mostly share their folders with others.

    Args:
        base: as `resolve_uri` has it.
    """

    def __init__(self, base: str) -> None:
        self.base = base
        self.ends_with_name = not _SPECIAL.search(base)  # in an archive, that stands at the end
        self.folders: dict[str, str] = {}

    def __getitem__(self, location: str) -> str:
        name = location.rpartition("/")[2]
        folder = location.removesuffix(name)
        plain = self.ends_with_name and _PLAIN_NAME.fullmatch(name)
        if not plain or _SPECIAL.search(folder):
            return resolve_uri(location, self.base)
        if folder not in self.folders:
            whole = resolve_uri(location, self.base)
            self.folders[folder] = whole.removesuffix(name)
        return self.folders[folder] + name


_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_SPECIAL = re.compile("[?#]|::")
"""Behind these what looks like a name may be something else, to some protocols."""
