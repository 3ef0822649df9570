"""Where a manifest is written, and how it names the videos: relative to itself where it can.

A dataset that is moved together with its manifest goes on working then. A video is named so if it
lies below the manifest's folder or at most `STEPS_UP` folders above, on the same file system.
URIs and all other paths stay whole.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

from jobs.errors import ConvertError, nearest
from jobs.manifest.conversion.videos import is_video
from pipeline.storage import is_folder, join, split

ENDING = ".parquet"
STEPS_UP = 2


def check_target(to: str, target: str) -> None:
    """Refuse a place that no manifest can be written to.

    Args:
        to: as the user gave it; `target` is its absolute form.

    Raises:
        ConvertError: it is a folder, or its ending is not that of Parquet.
    """
    example = f"{to.rstrip('/')}/manifest{ENDING}"
    try:
        folder = to.endswith("/") or is_folder(target)
    except Exception as error:  # each storage has its own kinds of failure
        reason = f"{type(error).__name__}: {error}"
        raise ConvertError(f"MANIFEST {to}: cannot be written: {reason}") from error
    if folder:
        raise ConvertError(
            f"MANIFEST {to} is a folder; the last argument is the file to write, such as {example}"
        )
    stem, ending = posixpath.splitext(to)
    if is_video(to):
        raise ConvertError(
            f"MANIFEST {to} is a video; the last argument is the manifest to write. "
            f"Add its name at the end, such as manifest{ENDING}"
        )
    if ending != ENDING:
        found = f"ends in {ending!r}" if ending else "has no ending"
        raise ConvertError(
            f"MANIFEST {to} {found}; the last argument is the manifest to write, a Parquet file. "
            f"Name it {stem}{ENDING}"
        )


def refuse_overwriting(target: str, files: Iterable[str]) -> None:
    """Refuse to write the manifest over a file that it is made from."""
    for file in files:
        same = file == target
        if not same and (ours := local_path(target)) and (theirs := local_path(file)):
            same = os.path.realpath(ours) == os.path.realpath(theirs)
        if same:
            raise ConvertError(f"MANIFEST {target} is the source too; give it another name")


def local_path(uri: str) -> str | None:
    """The path of a local file; None for any other URI."""
    if "::" in uri or ("://" in uri and not uri.startswith(("file://", "local://"))):
        return None
    fs, path = split(uri)
    return path if join(fs, path) == path else None


def missing_files(uris: Iterable[str]) -> list[str]:
    """Those of the local videos that are not there; remote ones are not looked for."""
    return [uri for uri in uris if (path := local_path(uri)) and not Path(path).is_file()]


class Relative:
    """Names videos relative to the folder of a manifest.

    Args:
        target: the manifest, an absolute path or a URI.
    """

    def __init__(self, target: str) -> None:
        path = local_path(target)
        self.folder = posixpath.dirname(path) if path else None
        self._devices: dict[str, int | None] = {}

    def __call__(self, uri: str) -> str:
        if self.folder is None or not uri.startswith("/") or "::" in uri:
            return uri
        name = posixpath.relpath(uri, self.folder)
        up = name.split("/").count("..")
        around = posixpath.commonpath([uri, self.folder])
        if up and (up > STEPS_UP or around == "/"):
            return uri
        if self._device(self.folder) != self._device(posixpath.dirname(uri)):
            return uri
        # behind a link to a folder, `..` leads elsewhere
        if up and os.path.realpath(f"{self.folder}/{name}") != os.path.realpath(uri):
            return uri
        return f"./{name}" if name.startswith("~") else name

    def _device(self, folder: str) -> int | None:
        """The file system of a folder, or of the nearest one around it that exists."""
        if folder not in self._devices:
            around = Path(folder)
            while not around.exists() and around != around.parent:
                around = around.parent
            self._devices[folder] = around.stat().st_dev
        return self._devices[folder]


def nearest_format(kind: str, known: Iterable[str]) -> str:
    """What to say of a format that is not known."""
    known = list(known)
    near = nearest(kind, known, cutoff=0.6)
    hint = f"; did you mean {near!r}?" if near else ""
    return f"--format {kind!r}: expected one of {', '.join(known)}{hint}"
