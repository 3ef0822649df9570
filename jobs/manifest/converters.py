"""What `retake manifest` makes of folders, CSV, JSON, JSONL and published benchmarks.

Every converter turns its source into entries, one for each edit, each with the place it came
from. `_group` checks them with the rules of a running job (`cluster.rows`) and makes one manifest
row of all entries that share a video and its settings. So each problem is reported with its line
or entry, and all of them at once.

A source may be of any fsspec protocol, and a glob (`edit?_FiVE.json`) reads several files as one.
A relative video is looked for in the folder `videos`, or beside the source if none is given.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.rows import CheckedEdit, CheckedVideo, check_row, default_video_id
from jobs.manifest.checks import EDIT, SCHEMA, nearest
from jobs.manifest.sources import VIDEO_EXTENSIONS, Entry, Source
from jobs.manifest.sources import ConvertError as ConvertError
from pipeline.errors import RowError

MAX_LISTED_PROBLEMS = 20

EDIT_FIELDS = tuple(column.name for column in EDIT)
VIDEO_SETTINGS = ("source_prompt", "start_frame", "num_frames", "fps", "seed")
NUMBERS = ("start_frame", "num_frames", "fps", "seed", "guidance_scale")
TGVE_CAPTIONS = {
    "style": "Style Change Caption",
    "object": "Object Change Caption",
    "background": "Background Change Caption",
    "multiple": "Multiple Changes Caption",
}


@dataclass(frozen=True)
class Converted:
    """Rows for `write_manifest`, and what the user should look at."""

    rows: list[dict[str, Any]]
    warnings: list[str]


def from_folder(
    uri: str,
    prompts: list[str],
    pattern: str = "**/*",
    *,
    skip_bad: bool = False,
    storage_options: dict[str, Any] | None = None,
) -> Converted:
    """Every video file in a folder that matches `pattern`, each with one edit for each prompt."""
    source = Source(uri, storage_options=storage_options)
    return _group(source, _folder_entries(source, prompts, pattern), skip_bad)


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
        storage_options: dict[str, Any] | None = None,
    ) -> Converted:
        source = Source(uri, videos, storage_options)
        return _group(source, read(source), skip_bad)

    convert.__name__, convert.__doc__ = read.__name__, read.__doc__
    return convert


@_converter
def from_table(source: Source) -> Iterator[Entry]:
    """CSV, TSV, JSON or JSONL with the columns `video` and `prompt`, or `video` and `edits`.

    Lines with the same video, source prompt and frames become one row with their edits in order.
    `edit_id`, `negative_prompt`, `guidance_scale` and `seed` beside a `prompt` belong to that
    edit. `edits` is a list of prompts or of objects. Other columns travel; one that differs
    between the edits of a video becomes a list with a value for each edit.
    """
    for place, record in source.records("video"):
        name, video_id = record.pop("video"), record.pop("video_id", None)
        items = record.pop("edits", None)
        wishes = {name: _number(name, record.pop(name, None)) for name in EDIT_FIELDS}
        settings = {name: _number(name, record.pop(name, None)) for name in VIDEO_SETTINGS[:-1]}
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
    (`edit_prompt`), the target's phrase and span, and the category travel.
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


def _group(source: Source, entries: Iterable[Entry], skip_bad: bool) -> Converted:
    """Check every entry and join those of one video with the same settings to a row."""
    groups: dict[Hashable, _Group] = {}
    video_ids: dict[str, str] = {}
    for entry in entries:
        try:
            video, edit = _check(entry)
            group = _find_group(groups, video_ids, entry, video)
            group.add(entry, edit)
        except (RowError, ConvertError) as error:
            source.problems.append(f"{entry.place}: {error}")
    if source.problems and not (skip_bad and groups):
        raise _refusal(source)
    if not groups:
        raise ConvertError(f"{source.uri} has no videos in it")
    names = list(dict.fromkeys(n for g in groups.values() for extra in g.extras for n in extra))
    for name in names:
        _add_extra(name, list(groups.values()))
    return Converted([g.row for g in groups.values()], [*source.problems, *_doubts(source, names)])


@dataclass(frozen=True)
class _Group:
    """A row in the making; `extras` has one element for each of its edits."""

    row: dict[str, Any]
    extras: list[Mapping[str, Any]] = field(default_factory=list)
    edit_ids: dict[str, str] = field(default_factory=dict)  # id -> place

    def add(self, entry: Entry, edit: CheckedEdit) -> None:
        edit_id = edit.edit_id
        if edit_id in self.edit_ids:
            if not entry.published or entry.edit.get("edit_id") is None:
                raise ConvertError(
                    f"the edit {edit_id!r} of this video is already at {self.edit_ids[edit_id]}"
                )
            edit_id = _numbered(edit_id, self.edit_ids)
        self.edit_ids[edit_id] = entry.place
        self.extras.append(entry.extra)
        self.row["edits"].append(
            {
                "edit_id": edit_id,
                "prompt": edit.prompt,
                "negative_prompt": edit.negative_prompt or None,
                "guidance_scale": edit.guidance_scale,
                "seed": edit.seed,
            }
        )


def _check(entry: Entry) -> tuple[CheckedVideo, CheckedEdit]:
    columns = {"video": entry.uri, "video_id": entry.video_id, "edits": [entry.edit]}
    video = check_row({**entry.settings, **columns})
    for failure in video.failures:
        raise RowError(failure.code, failure.message)
    return video, video.edits[0]


def _find_group(
    groups: dict[Hashable, _Group], video_ids: dict[str, str], entry: Entry, video: CheckedVideo
) -> _Group:
    settings = {name: getattr(video, name) for name in VIDEO_SETTINGS}
    key = (video.video, entry.video_id, *settings.values())
    if key not in groups:
        video_id = entry.video_id or default_video_id(entry.video)
        if video_id in video_ids:
            if entry.video_id is not None and not entry.published:
                raise ConvertError(
                    f"video_id {video_id!r} is already that of {video_ids[video_id]}, "
                    "with another video or other settings"
                )
            video_id = _numbered(video_id, video_ids)
        video_ids[video_id] = entry.place
        row = {"video": video.video, "video_id": video_id, **settings, "edits": []}
        groups[key] = _Group({name: row[name] for name in SCHEMA.names})
    return groups[key]


def _add_extra(name: str, groups: list[_Group]) -> None:
    """A column that travels: one value for a video, or a list if any video's edits differ."""
    values = [[extra.get(name) for extra in group.extras] for group in groups]
    uniform = all(value == row[0] for row in values for value in row)
    for group, row in zip(groups, values, strict=True):
        group.row[name] = row[0] if uniform else row


def _numbered(name: str, taken: Container[str]) -> str:
    return next(n for n in (f"{name}-{i}" for i in itertools.count(2)) if n not in taken)


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


def _doubts(source: Source, extra: list[str]) -> Iterator[str]:
    for name in extra:
        if near := nearest(name, {*SCHEMA.names, *EDIT_FIELDS}):
            yield f"column {name!r} travels as it is; {near!r} is a known name"
    if source.absent:
        name, taken = next(iter(source.absent.items()))
        yield f"videos not found: {len(source.absent)}, such as {name!r}; taken to be {taken}"


def _refusal(source: Source) -> ConvertError:
    listed = source.problems[:MAX_LISTED_PROBLEMS]
    rest = len(source.problems) - len(listed)
    lines = [*listed, f"and {rest} more"] if rest else listed
    return ConvertError(f"{source.uri} cannot be converted:" + "".join(f"\n  - {x}" for x in lines))
