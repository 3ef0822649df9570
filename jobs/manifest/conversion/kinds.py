"""Which format a source is in, by its name and its first bytes."""

from __future__ import annotations

import csv
import posixpath

from jobs.errors import ConvertError
from jobs.manifest.conversion.columns import is_video_name
from jobs.manifest.conversion.folders import look_into
from jobs.manifest.conversion.records import reading
from jobs.manifest.conversion.tables import read_head
from jobs.manifest.conversion.tars import TAR_EXTENSIONS
from jobs.manifest.conversion.videos import VIDEO_EXTENSIONS, is_video, matching
from pipeline.storage import is_folder, split

MARKS = {
    "tgve": (b"Video name", b"Our GT caption"),
    "balancecc": (b'"Video Name"', b'"Original Prompt"'),
    "ivebench": (b'"src_video_name"', b'"target_prompt"'),
    "five": (b'"video_name"', b'"source_prompt"', b'"target_prompt"'),
}
EXPECTED = (
    "expected videos, a folder of them, a .txt list, CSV, TSV, JSON, JSONL, Parquet or a tar file"
)


def guess_kind(uri: str) -> str:
    """The format of a path, URI or glob: "video", or one of `FORMATS`.

    Raises:
        ConvertError: it is not there, or in none of them.
    """
    found = matching(uri)
    if any(is_video(posixpath.basename(one)) for one in found):
        return "video"
    first = found[0]
    with reading(first):
        if is_folder(first):
            return look_into(first).kind
        fs, path = split(first)
        if not fs.exists(path):
            raise ConvertError(f"{first}: there is no such file or folder; {EXPECTED}")
    if first.lower().endswith((*TAR_EXTENSIONS, ".tgz")):
        return "webdataset"
    return guess_format(first, read_head(first))


def guess_format(uri: str, head: bytes) -> str:
    """Which format a file is in.

    Args:
        uri: for its ending and for messages.
        head: its first bytes (4 KiB are plenty), as `read_head` gives them.

    Raises:
        ConvertError: it is none of them.
    """
    if head.startswith((b"PAR1", b"ARROW1")) or uri.endswith(".arrow"):
        return "table"
    if not head.strip():
        raise ConvertError(f"{uri} is an empty file; {EXPECTED}")
    if head.startswith(b"PK"):
        sheet = uri.lower().endswith((".xlsx", ".ods"))
        kind = "spreadsheet; save it as CSV" if sheet else "zip file; unpack it"
        raise ConvertError(f"{uri} is a {kind}, and give that")
    if b"\0" in head:
        endings = ", ".join(VIDEO_EXTENSIONS)
        raise ConvertError(
            f"{uri} is not text, and its name has no ending of a video ({endings}); {EXPECTED}. "
            "A list (.txt) takes videos of any ending"
        )
    if uri.lower().endswith((".txt", ".lst", ".list")) and not _looks_like_table(head):
        return "list"
    return next((name for name, texts in MARKS.items() if all(t in head for t in texts)), "table")


def _looks_like_table(head: bytes) -> bool:
    """Whether a text is JSON, or begins with names of columns."""
    text = head.decode(errors="replace").lstrip()
    first = text.split("\n", 1)[0].strip()
    if text[:1] in ("{", "["):
        return True
    for delimiter in ",;\t|":
        names = next(csv.reader([first], delimiter=delimiter), [])
        if len(names) > 1 and any(is_video_name(name) for name in names):
            return True
    return False
