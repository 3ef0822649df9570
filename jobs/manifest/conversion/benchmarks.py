"""The published files of editing benchmarks, as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from jobs.manifest.conversion.records import Entry
from jobs.manifest.conversion.sources import Source

TGVE_CAPTIONS = {
    "style": "Style Change Caption",
    "object": "Object Change Caption",
    "background": "Background Change Caption",
    "multiple": "Multiple Changes Caption",
}


def tgve(source: Source) -> Iterator[Entry]:
    """LOVEU-TGVE-2023: a CSV with four captions a video, under headers such as `DAVIS Videos:`."""
    for record in source.records("Video name", "Our GT caption", *TGVE_CAPTIONS.values()):
        line = record.values
        name = (line["Video name"] or "").strip()
        captions = {kind: (line[column] or "").strip() for kind, column in TGVE_CAPTIONS.items()}
        if not any(captions.values()) and (not name or name.endswith(":")):
            continue  # a section header, or the gap before one
        for kind, caption in captions.items():
            edit = {"edit_id": kind, "prompt": caption}
            at = f"{record.place}, {kind}"
            yield source.published(record, at, name, edit, line["Our GT caption"], {})


def balancecc(source: Source) -> Iterator[Entry]:
    """BalanceCC: JSON, a list of videos, each with a list of four edits under `Editing`."""
    for record in source.records("Video Name", "Original Prompt", "Editing"):
        values = record.values
        name, source_prompt = values.pop("Video Name"), values.pop("Original Prompt")
        items = values.pop("Editing")
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            source.problems.append(f"{record.place}: 'Editing' is no list of objects")
            continue
        for number, item in enumerate(items, 1):
            kind = str(item.get("Editing Type") or "edit").split()[0].lower()
            edit = {"edit_id": kind, "prompt": item.get("Target Prompt")}
            extra = {k: v for k, v in {**values, **item}.items() if k != "Target Prompt"}
            at = f"{record.place}, edit {number}"
            yield source.published(record, at, name, edit, source_prompt, extra)


def five(source: Source) -> Iterator[Entry]:
    """FiVE: JSON, a list of pairs of prompts in which `[` and `]` mark the edited words.

    The benchmark's evaluation looks for `<video_name>/<save_dir>`, so these become the ids.
    """
    for record in source.records("video_name", "source_prompt", "target_prompt"):
        values = record.values
        name, source_prompt = values.pop("video_name"), _unmarked(values.pop("source_prompt"))
        edit = {
            "edit_id": values.pop("save_dir", None),
            "prompt": _unmarked(values.pop("target_prompt")),
            "negative_prompt": _unmarked(values.pop("negative_prompt", None)),
        }
        yield source.published(record, record.place, name, edit, source_prompt, values)


def ivebench(source: Source) -> Iterator[Entry]:
    """IVEBench: JSON, a list of videos, each with an instruction and the prompt of its result.

    The edit's prompt is `target_prompt`, which describes the result, its instruction `edit_prompt`.
    This, the target's phrase and span, and the category pass through.
    """
    for record in source.records("src_video_name", "source_prompt", "target_prompt"):
        values = record.values
        name, source_prompt = values.pop("src_video_name"), values.pop("source_prompt")
        edit = {"edit_id": values.get("subcategory"), "prompt": values.pop("target_prompt")}
        edit["instruction"] = values.get("edit_prompt")
        yield source.published(record, record.place, name, edit, source_prompt, values)


BENCHMARKS: dict[str, Callable[[Source], Iterator[Entry]]] = {
    "tgve": tgve,
    "balancecc": balancecc,
    "five": five,
    "ivebench": ivebench,
}


def _unmarked(prompt: Any) -> Any:
    return prompt.replace("[", "").replace("]", "") if isinstance(prompt, str) else prompt
