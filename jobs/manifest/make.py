"""`retake manifest`: a source in whatever form it comes, to a manifest in Parquet."""

from __future__ import annotations

from cluster.stages.blocks import RESERVED
from jobs.errors import ConvertError
from jobs.manifest.checks import check_manifest
from jobs.manifest.converters import FORMATS, from_folder, guess_format
from jobs.manifest.grouping import Converted
from jobs.manifest.writing import write_manifest
from jobs.spec import absolute
from pipeline.storage import is_folder, matching_files, open_file

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
        kind: a key of `jobs.manifest.converters.FORMATS`; guessed from the file by default.

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
    """The first bytes of a file, of a glob's first one; None for a folder."""
    try:
        if is_folder(source):
            return None
        first = next(iter(matching_files(source)), source)
        with open_file(first) as file:
            return file.read(HEAD_BYTES)
    except Exception as error:  # each storage has its own kinds of failure
        reason = str(error) or type(error).__name__
        raise ConvertError(f"{source}: cannot be read: {reason}") from error
