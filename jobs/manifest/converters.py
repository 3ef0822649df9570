"""What `retake manifest` makes of folders, CSV, JSON, JSONL and published benchmarks.

Every converter turns its source into entries, one for each edit, each with the place it came
from; `jobs.manifest.grouping` checks them and makes the manifest's rows.

A source may be of any fsspec protocol, and a glob (`edit?_FiVE.json`) reads several files as one.
A relative video is looked for in the folder `videos`, or beside the source if none is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa

from jobs.errors import ConvertError
from jobs.manifest.grouping import Converted, group_entries
from jobs.manifest.schema import EDIT, EDIT_FIELDS, SCHEMA
from jobs.manifest.sources import VIDEO_EXTENSIONS, Entry, Source

VIDEO_SETTINGS = tuple(n for n in SCHEMA.names if n not in ("video", "video_id", "edits"))
NUMBERS = {
    column.name
    for column in (*SCHEMA, *EDIT)
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
}
TGVE_CAPTIONS = {
    "style": "Style Change Caption",
    "object": "Object Change Caption",
    "background": "Background Change Caption",
    "multiple": "Multiple Changes Caption",
}


def from_folder(
    uri: str,
    prompts: list[str],
    pattern: str = "**/*",
    *,
    skip_bad: bool = False,
) -> Converted:
    """Every video file in a folder that matches `pattern`, each with one edit for each prompt."""
    source = Source(uri)
    return group_entries(source, _folder_entries(source, prompts, pattern), skip_bad)


def _folder_entries(source: Source, prompts: list[str], pattern: str) -> Iterator[Entry]:
    if not prompts:
        source.problems.append("there are no prompts; give at least one")
    videos = source.videos(pattern)
    if not videos:
        kinds = ", ".join(VIDEO_EXTENSIONS)
        source.problems.append(f"no video file matches {pattern!r}; expected files of {kinds}")
    for name, uri in videos.items():
        for number, prompt in enumerate(prompts, 1):
            yield Entry(f"{name}, prompt {number}", name, uri, {"prompt": prompt})


def _converter(read: Callable[[Source], Iterable[Entry]]) -> Callable[..., Converted]:
    """A public converter from a function that yields the entries of a source."""

    def convert(
        uri: str,
        *,
        videos: str | None = None,
        skip_bad: bool = False,
    ) -> Converted:
        source = Source(uri, videos)
        return group_entries(source, read(source), skip_bad)

    convert.__name__, convert.__doc__ = read.__name__, read.__doc__
    return convert


@_converter
def from_table(source: Source) -> Iterator[Entry]:
    """CSV, TSV, JSON or JSONL with the columns `video` and `prompt`, or `video` and `edits`.

    Lines with the same video, source prompt and frames become one row with their edits in order.
    `edit_id`, `negative_prompt`, `guidance_scale` and `seed` beside a `prompt` belong to that
    edit. `edits` is a list of prompts or of objects. Other columns pass through; one that
    differs between the edits of a video becomes a list with a value for each edit.
    """
    for place, record in source.records("video"):
        name, video_id = record.pop("video"), record.pop("video_id", None)
        items = record.pop("edits", None)
        wishes = {name: _number(name, record.pop(name, None)) for name in EDIT_FIELDS}
        settings = {name: _number(name, record.pop(name, None)) for name in VIDEO_SETTINGS}
        if items is None:
            edits, places = [wishes], [place]
        elif not isinstance(items, list) or not items or wishes["prompt"] or wishes["edit_id"]:
            source.problems.append(f"{place}: expected a `prompt`, or `edits`, a filled list")
            continue
        else:  # what stands beside the list holds for all of it, and the seed for the video
            settings["seed"] = wishes.pop("seed")
            edits = [{"prompt": item} if isinstance(item, str) else item for item in items]
            places = [f"{place}, edit {number}" for number in range(1, len(edits) + 1)]
        for at, edit in zip(places, edits, strict=True):
            if not isinstance(edit, dict):
                source.problems.append(f"{at}: {edit!r} is neither a prompt nor an object")
                continue
            if misplaced := sorted(edit.keys() & {*SCHEMA.names} - {*EDIT_FIELDS}):
                source.problems.append(f"{at}: {misplaced[0]!r} belongs to the video, not the edit")
                continue
            extra = {**record, **{k: v for k, v in edit.items() if k not in EDIT_FIELDS}}
            edit = {**wishes, **{k: v for k, v in edit.items() if k in EDIT_FIELDS}}
            yield Entry(at, name, source.locate(name), edit, video_id, settings, extra)


@_converter
def from_tgve(source: Source) -> Iterator[Entry]:
    """LOVEU-TGVE-2023: a CSV with four captions a video, under headers such as `DAVIS Videos:`."""
    for place, line in source.records("Video name", "Our GT caption", *TGVE_CAPTIONS.values()):
        name = (line["Video name"] or "").strip()
        captions = {kind: (line[column] or "").strip() for kind, column in TGVE_CAPTIONS.items()}
        if not any(captions.values()) and (not name or name.endswith(":")):
            continue  # a section header, or the gap before one
        for kind, caption in captions.items():
            edit = {"edit_id": kind, "prompt": caption}
            yield source.published(f"{place}, {kind}", name, edit, line["Our GT caption"], {})


@_converter
def from_balancecc(source: Source) -> Iterator[Entry]:
    """BalanceCC: JSON, a list of videos, each with a list of four edits under `Editing`."""
    for place, record in source.records("Video Name", "Original Prompt", "Editing"):
        name, source_prompt = record.pop("Video Name"), record.pop("Original Prompt")
        items = record.pop("Editing")
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            source.problems.append(f"{place}: 'Editing' is no list of objects")
            continue
        for number, item in enumerate(items, 1):
            kind = str(item.get("Editing Type") or "edit").split()[0].lower()
            edit = {"edit_id": kind, "prompt": item.get("Target Prompt")}
            extra = {k: v for k, v in {**record, **item}.items() if k != "Target Prompt"}
            yield source.published(f"{place}, edit {number}", name, edit, source_prompt, extra)


@_converter
def from_five(source: Source) -> Iterator[Entry]:
    """FiVE: JSON, a list of pairs of prompts in which `[` and `]` mark the edited words.

    The benchmark's evaluation looks for `<video_name>/<save_dir>`, so these become the ids.
    """
    for place, record in source.records("video_name", "source_prompt", "target_prompt"):
        name, source_prompt = record.pop("video_name"), _unmarked(record.pop("source_prompt"))
        edit = {
            "edit_id": record.pop("save_dir", None),
            "prompt": _unmarked(record.pop("target_prompt")),
            "negative_prompt": _unmarked(record.pop("negative_prompt", None)),
        }
        yield source.published(place, name, edit, source_prompt, record)


@_converter
def from_ivebench(source: Source) -> Iterator[Entry]:
    """IVEBench: JSON, a list of videos, each with an instruction and the prompt of its result.

    The edit's prompt is `target_prompt`, which describes the result. The instruction
    (`edit_prompt`), the target's phrase and span, and the category pass through.
    """
    for place, record in source.records("src_video_name", "source_prompt", "target_prompt"):
        name, source_prompt = record.pop("src_video_name"), record.pop("source_prompt")
        edit = {"edit_id": record.get("subcategory"), "prompt": record.pop("target_prompt")}
        yield source.published(place, name, edit, source_prompt, record)


FORMATS: dict[str, Callable[..., Converted]] = {
    "folder": from_folder,
    "table": from_table,
    "tgve": from_tgve,
    "balancecc": from_balancecc,
    "five": from_five,
    "ivebench": from_ivebench,
}


def guess_format(uri: str, head: bytes | None) -> str:
    """Which of FORMATS a source is in.

    Args:
        uri: for the message only.
        head: the first bytes of the file (4 KiB are plenty); None for a folder.

    Raises:
        ConvertError: it is none of them.
    """
    if head is None:
        return "folder"
    if head.startswith(b"PAR1"):
        raise ConvertError(f"{uri} is Parquet already; `retake run` takes it as the manifest")
    if b"\0" in head or not head.strip():
        raise ConvertError(f"{uri} is not text; expected CSV, JSON, JSONL or a folder of videos")
    marks = {
        "tgve": (b"Video name", b"Our GT caption"),
        "balancecc": (b'"Video Name"', b'"Original Prompt"'),
        "ivebench": (b'"src_video_name"', b'"target_prompt"'),
        "five": (b'"video_name"', b'"source_prompt"', b'"target_prompt"'),
    }
    return next((name for name, texts in marks.items() if all(t in head for t in texts)), "table")


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


def _unmarked(prompt: Any) -> Any:
    return prompt.replace("[", "").replace("]", "") if isinstance(prompt, str) else prompt
