"""Where a checkpoint lies: the forms that it is named by."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from pipeline.errors import UnsupportedCheckpoint
from pipeline.locations import is_local
from pipeline.model.folder.bucket import InStorage
from pipeline.model.folder.hub import OnHub, is_hub_name
from pipeline.model.folder.layout import (
    FORMS,
    INDEX,
    describe,
    did_you_mean,
    names_in,
    what_it_is,
)
from pipeline.model.folder.node import CheckpointPin, Remote
from pipeline.storage import split

EMBEDDED = "pkg://jobs.demo/checkpoint"
"""The tiny checkpoint that ships with this package."""


def locate(uri: str, cache: Path) -> Path | Remote:
    """A folder of this node, or a checkpoint that lies elsewhere, as it is now.

    Args:
        uri: as `open_checkpoint` takes it.
        cache: where this node keeps checkpoints from object storage.

    Raises:
        UnsupportedCheckpoint: there is no such folder, or it holds no checkpoint.
    """
    uri = EMBEDDED if uri == "embedded" else uri
    if uri.startswith("pkg://"):
        return _package_folder(uri)
    if is_hub_name(name := uri.removeprefix("hf://")) and name != uri and "@" not in name:
        return OnHub.find(name, cache)
    if "://" in uri and not is_local(uri):
        return InStorage.find(uri, cache)
    path = _expanded(uri)
    if uri and path.is_dir():
        _refuse_other_folders(uri, path)
        return path
    if path.is_file():
        raise UnsupportedCheckpoint(describe([path.name]) or f"it is a file; {FORMS}")
    if is_hub_name(uri):
        return OnHub.find(uri, cache)
    raise UnsupportedCheckpoint(f"there is no such folder{did_you_mean(path.name)}. {FORMS}")


def pinned(pin: CheckpointPin, cache: Path) -> Path | Remote:
    """What a driver found, on this node; nothing is asked of the store or the Hub.

    Raises:
        UnsupportedCheckpoint: it was a folder of the driver's node, and is none of this one.
    """
    if "://" in pin.uri and pin.version:
        return InStorage.pinned(pin, cache)
    if pin.version:
        return OnHub.pinned(pin, cache)
    if "://" not in pin.uri and pin.uri != "embedded" and not _expanded(pin.uri).is_dir():
        raise UnsupportedCheckpoint(
            "the driver read this folder on its own node, and there is none on this one. Put it at "
            "the same path on every node, or give a URI that all of them read "
            "(s3://bucket/CogVideoX-5b)"
        )
    return locate(pin.uri, cache)


def _expanded(uri: str) -> Path:
    if "://" in uri:
        return Path(split(uri)[1])
    try:
        return Path(uri).expanduser()
    except RuntimeError:  # `~name` of a user who is not known here
        return Path(uri)


def _package_folder(uri: str) -> Path:
    package, _, inside = uri.removeprefix("pkg://").partition("/")
    try:
        path = Path(str(importlib.resources.files(package))) / inside
    except ModuleNotFoundError as error:
        raise UnsupportedCheckpoint(str(error)) from error
    if not path.is_dir():
        raise UnsupportedCheckpoint(f"the package {package} has no folder {inside!r}")
    return path


def _refuse_other_folders(uri: str, path: Path) -> None:
    if (path / INDEX).exists():
        return
    above = (path.absolute().parent / INDEX).is_file()
    raise UnsupportedCheckpoint(what_it_is(uri, list(names_in(path)), above=above))
