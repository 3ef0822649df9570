"""`retake manifest`: a source in whatever form it comes, to a manifest in Parquet."""

from __future__ import annotations

import glob

import fsspec

from cluster.stages.blocks import RESERVED
from jobs.manifest.checks import check_manifest, write_manifest
from jobs.manifest.converters import FORMATS, Converted, from_folder, guess_format
from jobs.manifest.sources import ConvertError
from jobs.spec import absolute

HEAD_BYTES = 4096


def make_manifest(
    source: str,
    to: str,
    *,
    prompts: list[str],
    videos: str | None = None,
    kind: str | None = None,
    pattern: str = "**/*",
    skip_bad: bool = False,
) -> Converted:
    """Convert a source, write the manifest, and check it as `retake run` will.

    Args:
        source: a folder of videos, or a CSV, JSON or JSONL file; a path or fsspec URI.
        to: the Parquet file to write.
        prompts: for a folder, one edit of every video each.
        videos: the folder that videos are looked up in by name; the source's own by default.
        kind: a key of `jobs.convert.FORMATS`; guessed from the file by default.

    Raises:
        ConvertError: the source cannot be read or is in no known form; lists every bad entry.
        ManifestError: the manifest cannot be written or would be refused.
    """
    source = absolute(source)
    if kind is not None and kind not in FORMATS:
        raise ConvertError(f"--format {kind!r}: expected one of {', '.join(FORMATS)}")
    kind = kind or guess_format(source, _head(source))
    if kind == "folder":
        converted = from_folder(source, prompts, pattern, skip_bad=skip_bad)
    elif prompts:
        raise ConvertError(f"--prompt goes with a folder of videos; {source} has its own prompts")
    else:
        where = absolute(videos) if videos else None
        converted = FORMATS[kind](source, videos=where, skip_bad=skip_bad)
    write_manifest(converted.rows, absolute(to))
    found = check_manifest(absolute(to), reserved=RESERVED)
    return Converted(converted.rows, [*converted.warnings, *found.warnings])


def _head(source: str) -> bytes | None:
    """The first bytes of a file; None for a folder."""
    try:
        fs, path = fsspec.core.url_to_fs(source)
        if fs.isdir(path):
            return None
        if glob.has_magic(path) and not fs.exists(path) and (matches := sorted(fs.glob(path))):
            path = matches[0]
        with fs.open(path, "rb") as file:
            return bytes(file.read(HEAD_BYTES))
    except Exception as error:  # each storage has its own kinds of failure
        said = str(error) or type(error).__name__
        raise ConvertError(f"{source}: cannot be read: {said}") from error
