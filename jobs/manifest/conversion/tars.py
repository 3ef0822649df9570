"""WebDataset: tar files in which `000.mp4`, `000.txt` and `000.json` are one sample.

The videos stay where they are: `tar://000.mp4::/data/00000.tar` is read when the job needs it.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import ConvertError, nearest
from jobs.manifest.conversion.records import Record, reading
from jobs.manifest.conversion.videos import Sieve, is_video
from pipeline.storage import from_json, open_file

TAR_EXTENSIONS = (".tar", ".tar.gz", ".tar.bz2", ".tar.xz")
TEXTS = ("txt", "text", "caption", "cls")
"""Files beside a video whose text becomes a column."""


@dataclass
class _Sample:
    videos: dict[str, str] = field(default_factory=dict)  # member names by extension
    values: dict[str, Any] = field(default_factory=dict)


def tar_records(uri: str, video: str | None, problems: list[str], sieve: Sieve) -> Iterator[Record]:
    """The samples of a tar file that have a video.

    Args:
        video: the extension that the video has, where a sample has several: `input.mp4`.
    """
    tar = posixpath.basename(uri)
    for key, sample in _samples(uri, problems, sieve).items():
        place = f"{tar}, sample {key}"
        videos = sample.videos
        if video is not None:
            wanted = video.lstrip(".")
            if videos and wanted not in videos:
                near = nearest(wanted, videos)
                hint = f"; did you mean {near!r}?" if near else ""
                problems.append(
                    f"{place}: it has no {wanted!r}, as --video-column asks for, but "
                    f"{', '.join(videos)}{hint}"
                )
                continue
            videos = {name: member for name, member in videos.items() if name == wanted}
        if len(videos) > 1:
            problems.append(
                f"{place}: it has {len(videos)} videos, {', '.join(videos)}; "
                f"name the one to edit: --video-column {next(iter(videos))}"
            )
        for member in list(videos.values())[:1] if len(videos) == 1 else ():
            name = f"{tar}/{posixpath.normpath(member)}"
            yield Record(place, sample.values, uri, name, f"tar://{member}::{uri}")


def _samples(uri: str, problems: list[str], sieve: Sieve) -> dict[str, _Sample]:
    tar = posixpath.basename(uri)
    samples: dict[str, _Sample] = {}
    if uri.lower().endswith(".tgz"):
        raise ConvertError(f"{uri}: rename it to end in .tar.gz; videos are not found in a .tgz")
    try:
        with reading(uri), open_file(uri) as file, tarfile.open(fileobj=file) as archive:
            for member in archive:
                if member.isfile():
                    _add(samples, archive, member, f"tar://{member.name}::{uri}", problems, sieve)
    except ConvertError as error:
        if isinstance(error.__cause__, tarfile.TarError | EOFError):
            why = str(error.__cause__).partition(":\n")[0]
            raise ConvertError(f"{uri} is no whole tar file ({why}); copy it again") from error
        raise
    bare = [key for key, sample in samples.items() if not sample.videos]
    if bare:
        sieve.left_out["sample without a video"].extend(f"{key} of {tar}" for key in bare)
    return samples


def _add(
    samples: dict[str, _Sample],
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    uri: str,
    problems: list[str],
    sieve: Sieve,
) -> None:
    """Put a file of the archive into its sample, whose key ends at the name's first dot."""
    folder, _, name = posixpath.normpath(member.name).rpartition("/")
    stem, _, extension = name.partition(".")
    key = f"{folder}/{stem}" if folder else stem
    kind = extension.lower()
    if is_video(name):
        if sieve.passes(posixpath.normpath(member.name), uri, member.size):
            samples.setdefault(key, _Sample()).videos[kind] = member.name
        return
    if not stem or (kind not in TEXTS and kind != "json"):
        return
    sample = samples.setdefault(key, _Sample())
    extracted = archive.extractfile(member)
    content = extracted.read() if extracted else b""
    try:
        text = content.decode("utf-8-sig").strip()
        if kind != "json":
            sample.values[kind] = text or None
            return
        found = from_json(text)
        if not isinstance(found, dict):
            raise ValueError("expected an object with columns")
        # what has a file of its own goes before what the JSON says
        sample.values = {**found, **sample.values}
    except ValueError as error:
        problems.append(f"{member.name} of {posixpath.basename(uri)}: {error}")
