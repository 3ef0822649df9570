"""`retake manifest`: sources in whatever form they come, to a manifest in Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jobs.errors import ConvertError, counted
from jobs.manifest.checks import check_manifest
from jobs.manifest.conversion.formats import FORMATS, OF_FILES, Options, convert
from jobs.manifest.conversion.grouping import Converted
from jobs.manifest.conversion.kinds import guess_kind
from jobs.manifest.conversion.records import examples
from jobs.manifest.conversion.videos import absolute_video
from jobs.manifest.locations import (
    Relative,
    check_target,
    missing_files,
    nearest_format,
    refuse_overwriting,
)
from jobs.manifest.schema import SCHEMA
from jobs.manifest.writing import write_manifest
from jobs.spec import absolute


@dataclass(frozen=True)
class Made:
    """What was written.

    Args:
        notes: what was decided for the user; `warnings` are what to look at.
    """

    videos: int
    edits: int
    notes: list[str]
    warnings: list[str]


def make_manifest(
    sources: str | Sequence[str],
    to: str,
    options: Options,
    *,
    kind: str | None = None,
    whole_paths: bool = False,
    check: bool = True,
) -> Made:
    """Convert sources, write the manifest, and check it as `retake run` will.

    Args:
        sources: paths, fsspec URIs or globs.
        to: the Parquet file to write; one that is there is replaced.
        kind: one of `FORMATS`; guessed by default.
        whole_paths: name videos by absolute paths, and not relative to the manifest.
        check: look whether local videos are there.

    Raises:
        ConvertError: a source cannot be read or is in no known form; lists every bad entry.
        ManifestError: the manifest cannot be written or would be refused.
    """
    from cluster.rows import NO_FILES
    from cluster.stages.blocks import RESERVED

    target = _absolute(to)
    check_target(to, target)
    if kind is not None and kind not in FORMATS:
        raise ConvertError(nearest_format(kind, FORMATS))
    _check_prompts(options.prompts)
    given = [sources] if isinstance(sources, str) else sources
    uris = [_absolute(source) for source in given]
    refuse_overwriting(target, uris)
    if options.videos is not None:
        options = replace(options, videos=_absolute(options.videos))
    kinds = [kind or guess_kind(uri) for uri in uris]
    converted = convert(uris, kinds, options)
    refuse_overwriting(target, converted.files)
    warnings = [*converted.warnings, *(_missing(converted, uris[0], kinds[0]) if check else ())]
    warnings += _missing_masks(converted) if check else []
    warnings += _rename(converted, RESERVED)
    if not whole_paths:
        relative = Relative(target)
        for row in converted.rows:
            row["video"] = relative(row["video"])
            for edit in row["edits"]:
                if edit["mask"] not in (None, *NO_FILES):
                    edit["mask"] = relative(edit["mask"])
    write_manifest(converted.rows, target)
    warnings += check_manifest(target, reserved=RESERVED).warnings
    edits = sum(len(row["edits"]) for row in converted.rows)
    return Made(len(converted.rows), edits, converted.notes, warnings)


def _absolute(location: str) -> str:
    """An absolute path without `..`, or the URI."""
    return absolute_video(absolute(location), "/")


def _check_prompts(prompts: Sequence[str]) -> None:
    """Once for all videos, so that the message comes once."""
    for number, prompt in enumerate(prompts):
        if not prompt.strip():
            raise ConvertError("--prompt is empty; say what the edits should show")
        if prompt in prompts[:number]:
            raise ConvertError(
                f"--prompt {prompt!r} is given twice; the two edits would be the same"
            )


def _missing(converted: Converted, source: str, kind: str) -> list[str]:
    """Warnings of videos that are not there.

    Raises:
        ConvertError: not one is, so they are looked for in the wrong place.
    """
    uris = [row["video"] for row in converted.rows]
    missing = missing_files(uris)
    if missing and len(missing) == len(uris):
        way = "Say where they are with --videos DIR"
        if kind not in OF_FILES:
            way += ", or which column names them with --video-column NAME"
        raise ConvertError(
            f"{source}: none of its videos is there, such as {examples(missing, 2)}. {way}; "
            "--no-check writes the manifest without looking"
        )
    if missing:
        return [f"{len(missing)} of {counted(len(uris), 'video')} not found: {examples(missing)}"]
    if converted.absent:
        name, taken = next(iter(converted.absent.items()))
        number = len(converted.absent)
        return [f"videos not found: {number}, such as {name!r}; taken to be {taken}"]
    return []


def _missing_masks(converted: Converted) -> list[str]:
    """A warning of masks that are not there."""
    from cluster.rows import NO_FILES

    masks = [edit["mask"] for row in converted.rows for edit in row["edits"] if edit["mask"]]
    missing = missing_files(dict.fromkeys(mask for mask in masks if mask not in NO_FILES))
    return [f"masks not found: {len(missing)}, such as {missing[0]!r}"] if missing else []


def _rename(converted: Converted, reserved: frozenset[str]) -> list[str]:
    """Rename the passthrough columns that the results have a column of the same name for."""
    taken = [n for n in converted.rows[0] if n in reserved and n not in SCHEMA.names]
    for row in converted.rows:
        for name in taken:
            row[f"table_{name}"] = row.pop(name)
    if not taken:
        return []
    renamed = ", ".join(f"{name} to table_{name}" for name in taken)
    return [f"columns renamed, since the results have such names: {renamed}"]
