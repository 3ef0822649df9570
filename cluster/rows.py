"""What a manifest row must satisfy before any work is done for it.

`check_row` turns one row of the manifest, as a plain dict, into a `CheckedRow`. A row that no edit
can be made from raises `RowError`. An edit that is wrong on its own becomes an `EditFailure`, and
the edits beside it go on.

Both ids become file names (`edits/<video_id>/<edit_id>.mp4`), so an id is accepted only if it is
safe as one path segment on POSIX, in object storage and on Windows; `id_problem` has the rules.
Nothing here reads a file: whether the video exists is found out when it is opened.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quoted
from numbers import Integral, Real
from typing import Any

from pipeline.errors import ErrorCode, RowError
from pipeline.locations import normalised, problem, resolve_uri
from pipeline.records import EditSpec, VideoSpec

MAX_ID_BYTES = 200  # a file name may have 255, and the stored name adds a suffix
MAX_DEFAULT_ID_BYTES = 120
MAX_INT64 = 2**63 - 1

WISHES = ("prompt", "negative_prompt", "guidance_scale", "seed", "mask")
"""What of an edit its default id is made of, in order."""
NO_FILES = ("auto", "none")
"""What stands in the place of a mask's location."""

_REFUSED_IN_IDS = frozenset('/\\<>:"|?*')
_DEVICE_NAMES = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"]
    + [f"{port}{n}" for port in ("COM", "LPT") for n in "123456789¹²³"]
)


@dataclass(frozen=True)
class EditFailure:
    """One edit that was refused.

    `edit_id` is for display: the given id if it is usable, else a cleaned form of it. It differs
    from the id of every other edit of the row (a repeated one gets `:` and its place, and `:`
    stands in no accepted id), so that each refused edit is a result row of its own.
    """

    edit_id: str
    code: ErrorCode
    message: str


@dataclass(frozen=True)
class CheckedRow:
    """One row of the manifest.

    Args:
        video: with its ids filled in and the edits that can be made. Their `negative_prompt` is ""
            where the manifest has none; their `mask` is the row's where they have none.
        failures: the edits that were refused.
    """

    video: VideoSpec
    failures: tuple[EditFailure, ...]


def check_row(row: Mapping[str, Any], *, base: str | None = None) -> CheckedRow:
    """Check one row of the manifest.

    Args:
        row: the row's columns by name; unknown ones are left alone.
        base: folder or URI that a relative `video` or `mask` is resolved against (the manifest's
            folder); with None it stays as it is.

    Raises:
        RowError: nothing can be made from the row: BAD_URI, BAD_VIDEO_ID, BAD_VALUE or NO_EDITS.
    """
    uri = _video_uri(row.get("video"))
    video_id = _video_id(row.get("video_id"), uri)
    edits, failures = _check_edits(row.get("edits"), row.get("mask"), base)
    video = VideoSpec(
        video=resolve_uri(uri, base),
        video_id=video_id,
        source_prompt=text_of(row, "source_prompt") or None,
        edits=edits,
        start_frame=whole_number(row, "start_frame", least=0),
        num_frames=whole_number(row, "num_frames", least=1),
        fps=real_number(row, "fps", zero=False),
        seed=whole_number(row, "seed", least=0),
    )
    return CheckedRow(video, failures)


def default_video_id(video_uri: str) -> str:
    """`<stem>-<8 hex of the URI's SHA-256>`, at most 120 characters.

    A pure function of the URI as the manifest gives it, so a folder that is moved together with
    its manifest keeps its ids, and `a/clip.mp4` and `b/clip.mp4` differ. Every spelling of a URI,
    with `./`, `..`, `//` or `~`, has the id of the shortest one.
    """
    video_uri = normalised(video_uri)
    path = video_uri.split("?", maxsplit=1)[0] if "://" in video_uri else video_uri
    name = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    return _slug(name.rsplit(".", 1)[0], of=video_uri)


def default_edit_id(
    prompt: object,
    negative_prompt: object,
    guidance_scale: object,
    seed: object,
    mask: object = None,
) -> str:
    """`edit-<8 hex>` from what the edit asks for, so that other edits beside it do not matter.

    An edit without a mask of its own has the id that it had before there were masks.
    """
    if guidance_scale is None and seed is None and mask is None and isinstance(prompt, str):
        negative = negative_prompt or ""
        if isinstance(negative, str):  # as below, in a fifth of the time: most of millions are such
            return f"edit-{_digest(f'[{quoted(prompt)}, {quoted(negative)}, null, null]')}"
    if isinstance(guidance_scale, Real):
        guidance_scale = float(guidance_scale)
    if isinstance(seed, Real) and seed == seed // 1:
        seed = math.floor(seed)
    asked = [prompt, negative_prompt or "", guidance_scale, seed]
    if mask is not None:
        asked.append(normalised(mask) if isinstance(mask, str) else mask)
    return f"edit-{_digest(json.dumps(asked, default=repr))}"


def default_id_of(edit: Mapping[str, Any]) -> str:
    """The `default_edit_id` of an edit as the manifest gives it."""
    return default_edit_id(*(edit.get(name) for name in WISHES))


def display_id(value: object) -> str:
    """`value` if it is a usable id, else a usable id that resembles it and no other value's."""
    text = value if isinstance(value, str) else repr(value)
    return text if id_problem(value) is None else _slug(text, of=text)


def id_problem(value: object) -> str | None:
    """Why `value` cannot be an id, or None if it can.

    An id has 1 to 200 bytes of UTF-8, all printable; spaces inside are fine. It has none of
    / \\ < > : " | ? * and no `..`, neither starts nor ends with a space or a dot, and is not a
    device name of Windows (CON, NUL, COM1, ...).
    """
    if not isinstance(value, str):
        return f"{_show(value)} is not a string"
    if not value:
        return "it is empty; leave it null for the default"
    refused = sorted({ch for ch in value if ch in _REFUSED_IN_IDS or not ch.isprintable()})
    if refused:
        listed = ", ".join(map(ascii, refused[:5]))
        return f"{_show(value)} has {listed}, not allowed in file names: write - instead"
    if len(value.encode()) > MAX_ID_BYTES:
        size = len(value.encode())
        return f"{_show(value)} has {size} bytes; at most {MAX_ID_BYTES} are allowed: shorten it"
    if ".." in value:
        return f"{_show(value)} has '..' in it, which can leave the output folder: write one dot"
    if value.strip(" .") != value:
        return f"{_show(value)} starts or ends with a space or a dot: cut it off"
    if value.split(".")[0].rstrip().upper() in _DEVICE_NAMES:
        return f"{_show(value)} is a device name on Windows: take another"
    return None


def _video_uri(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RowError(
            ErrorCode.BAD_URI, f"video is {_show(value)}; expected the path or URI of a video file"
        )
    if why := _unusable(value):
        raise RowError(ErrorCode.BAD_URI, f"video {_show(value)} {why}")
    return value


def _unusable(location: str) -> str | None:
    """Why a text cannot be a location, and the way out."""
    if any(unicodedata.category(ch) in ("Cc", "Cs") for ch in location):
        return "has control characters in it; expected a path or URI"
    return problem(location)


def mask_of(edit: object, of_row: object, base: str | None) -> str | None:
    """The mask of an edit: a location that is resolved, `auto`, `none`, or None without any.

    Args:
        edit, of_row: what the manifest gives for the edit, and for its row.

    Raises:
        RowError: BAD_MASK, it can be neither.
    """
    name, value = ("mask", edit) if edit is not None else ("the row's mask", of_row)
    if value is None or value in NO_FILES:
        return value  # type: ignore[return-value]
    if not isinstance(value, str) or not value.strip():
        raise RowError(
            ErrorCode.BAD_MASK,
            f"{name} is {_show(value)}; expected the path or URI of a video or image, white where "
            "the edit may change it, or auto, or none, or null",
        )
    if why := _unusable(value):
        raise RowError(ErrorCode.BAD_MASK, f"{name} {_show(value)} {why}")
    return resolve_uri(value, base)


def _video_id(value: object, uri: str) -> str:
    if value is None:
        return default_video_id(uri)
    if problem := id_problem(value):
        raise RowError(ErrorCode.BAD_VIDEO_ID, f"video_id cannot be used: {problem}")
    return str(value)


def _check_edits(
    edits: object, mask: object, base: str | None
) -> tuple[tuple[EditSpec, ...], tuple[EditFailure, ...]]:
    """The edits that can be made, and those that are refused; `mask` is the row's."""
    if edits is None:
        edits = ()
    if isinstance(edits, str | bytes | Mapping) or not isinstance(edits, Iterable):
        raise RowError(ErrorCode.BAD_VALUE, f"edits is {_show(edits)}; expected a list of edits")
    accepted: list[EditSpec] = []
    failures: list[EditFailure] = []
    places: dict[str, int] = {}
    for place, edit in enumerate(edits, 1):
        edit_id = None
        try:
            edit_id = _edit_id(edit, place)
            checked = _check_edit(edit, edit_id, mask, base)
            if edit_id in places:
                raise RowError(
                    ErrorCode.DUPLICATE_EDIT_ID,
                    f"edits {places[edit_id]} and {place} of the video are both {edit_id!r}; "
                    "give each its own edit_id, or the same prompt another seed",
                )
            accepted.append(checked)
        except RowError as error:
            given = edit.get("edit_id") if isinstance(edit, Mapping) else edit
            shown = edit_id or display_id(given)
            unique = f"{shown}:{place}" if shown in places else shown
            failures.append(EditFailure(unique, error.code, error.message))
        places.setdefault(edit_id or shown, place)
    if not accepted and not failures:
        raise RowError(
            ErrorCode.NO_EDITS, "the video has no edits; give at least one with a prompt"
        )
    return tuple(accepted), tuple(failures)


def _edit_id(edit: object, place: int) -> str:
    if not isinstance(edit, Mapping):
        raise RowError(
            ErrorCode.BAD_VALUE, f"edit {place} is {_show(edit)}; expected a struct with a prompt"
        )
    value = edit.get("edit_id")
    if value is None:
        return default_id_of(edit)
    if problem := id_problem(value):
        raise RowError(ErrorCode.BAD_EDIT_ID, f"edit_id of edit {place} cannot be used: {problem}")
    return str(value)


def _check_edit(edit: Mapping[str, Any], edit_id: str, mask: object, base: str | None) -> EditSpec:
    prompt = text_of(edit, "prompt")
    if not prompt.strip():
        raise RowError(
            ErrorCode.EMPTY_PROMPT, f"edit {edit_id!r} has no prompt; say what the edit should show"
        )
    return EditSpec(
        edit_id=edit_id,
        prompt=prompt,
        negative_prompt=text_of(edit, "negative_prompt"),
        guidance_scale=real_number(edit, "guidance_scale", zero=True),
        seed=whole_number(edit, "seed", least=0),
        mask=mask_of(edit.get("mask"), mask, base),
        instruction=text_of(edit, "instruction") or None,
    )


def text_of(fields: Mapping[str, Any], name: str) -> str:
    """A text of a row or an edit; empty where it is null.

    Raises:
        RowError: it is something else.
    """
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise RowError(ErrorCode.BAD_VALUE, f"{name} is {_show(value)}; expected a string or null")
    return value or ""


def whole_number(fields: Mapping[str, Any], name: str, *, least: int) -> int | None:
    """A whole number of a row or an edit.

    Raises:
        RowError: it is something else, or less than `least`.
    """
    value = fields.get(name)
    if value is None:
        return None
    # pandas stores whole numbers with gaps as floats
    whole = isinstance(value, Integral) or (isinstance(value, Real) and float(value).is_integer())
    if not whole or isinstance(value, bool) or not least <= value <= MAX_INT64:
        raise RowError(
            ErrorCode.BAD_VALUE,
            f"{name} is {_show(value)}; expected a whole number, {least} or more, or null",
        )
    return int(value)


def real_number(fields: Mapping[str, Any], name: str, *, zero: bool) -> float | None:
    """A number of a row or an edit that is not negative.

    Args:
        zero: whether it may be 0.

    Raises:
        RowError: it is something else.
    """
    value = fields.get(name)
    if value is None:
        return None
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise RowError(
            ErrorCode.BAD_VALUE,
            f"{name} is {_show(value)}; expected a finite number, "
            f"{'0 or more' if zero else 'more than 0'}, or null",
        )
    return float(value)


def _slug(text: str, *, of: str) -> str:
    """A readable id from `text`, made unique by the digest of `of`."""
    clean = re.sub(r"[^\w-]+", "-", text).strip("-").encode()[: MAX_DEFAULT_ID_BYTES - 9]
    return f"{clean.decode(errors='ignore') or 'unnamed'}-{_digest(of)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _show(value: object) -> str:
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
