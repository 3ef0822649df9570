"""Where a checkpoint lies: the forms that it is named by, each made a local folder."""

from __future__ import annotations

import hashlib
import importlib.resources
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pipeline.errors import UnsupportedCheckpoint
from pipeline.locations import unknown_protocol
from pipeline.model.folder.configuration import read_configuration
from pipeline.model.folder.layout import HASHED, INDEX, describe
from pipeline.storage import split

EMBEDDED = "pkg://jobs.demo/checkpoint"
"""The tiny checkpoint that ships with this package."""

PUBLISHED = ("zai-org/CogVideoX-2b", "zai-org/CogVideoX-5b", "zai-org/CogVideoX1.5-5B")
FORMS = (
    "`checkpoint` may be a local folder in diffusers format, a name on the Hugging Face Hub "
    "(zai-org/CogVideoX-5b), a URI of a folder (s3://bucket/CogVideoX-5b), or `embedded`"
)
_SHARD = "-?????-of-?????.safetensors"
SMALL_FILES = ("*.json", "*.model")
HUB_FILES = (
    *SMALL_FILES,
    *(
        f"{stem}{ending}"
        for stem in (
            "transformer/diffusion_pytorch_model",
            "vae/diffusion_pytorch_model",
            "text_encoder/model",
        )
        for ending in (".safetensors", _SHARD)
    ),
)
"""What is fetched from the Hub: what is loaded. No variants, no pickles, no pictures."""

LEVELS = 5
"""Folders are looked into so deep to say what they hold."""


def local_folder(uri: str, cache: Path) -> Path:
    """The local folder of a checkpoint; one in storage or on the Hub is copied here once.

    Args:
        uri: as `open_checkpoint` takes it.
        cache: where folders from object storage are copied to.

    Raises:
        UnsupportedCheckpoint: there is no such folder, or it holds no checkpoint.
    """
    uri = EMBEDDED if uri == "embedded" else uri
    if uri.startswith("pkg://"):
        return _package_folder(uri)
    if "://" in uri:
        return _copy_from_storage(uri, cache)
    path = _expanded(uri)
    if uri and path.is_dir():
        _refuse_other_folders(path)
        return path
    if path.is_file():
        raise UnsupportedCheckpoint(describe([path.name]) or f"it is a file; {FORMS}")
    if is_hub_name(uri):
        return _from_hub(uri)
    raise UnsupportedCheckpoint(f"there is no such folder{_did_you_mean(path.name)}. {FORMS}")


def is_hub_name(uri: str) -> bool:
    """Whether a location that is no local folder has the form `owner/name`."""
    return uri.count("/") == 1 and not uri.startswith((".", "/", "~")) and all(uri.split("/"))


def _expanded(uri: str) -> Path:
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


def _refuse_other_folders(path: Path) -> None:
    if (path / INDEX).exists():
        return
    above = (path.absolute().parent / INDEX).is_file()
    raise UnsupportedCheckpoint(_what_it_is(str(path), list(_names(path)), above=above))


def _names(folder: Path) -> Iterator[str]:
    """The files of a folder to a depth of `LEVELS`, with `/` between parts."""
    for place, folders, files in os.walk(folder):
        inside = Path(place).relative_to(folder)
        if len(inside.parts) + 1 >= LEVELS:
            folders.clear()
        yield from ((inside / file).as_posix() for file in files)


def _what_it_is(uri: str, names: Collection[str], *, above: bool) -> str:
    """What a folder without a `model_index.json` is, and what to give instead."""
    base = uri.rstrip("/")
    if above:
        parent, _, name = base.rpartition("/")
        better = parent or f"{base}/.."
        return f"it is the folder {name} of a checkpoint; give the checkpoint's folder: {better}"
    ending = f"/{INDEX}"
    if deeper := sorted(name.removesuffix(ending) for name in names if name.endswith(ending)):
        listed = ", ".join(f"{base}/{name}" for name in deeper[:3])
        one_of = "one of " if len(deeper) > 1 else ""
        return f"the folder itself is no checkpoint, but one lies in it; give {one_of}{listed}"
    return describe(names) or (
        f"it lacks model_index.json; expected a CogVideoX folder in diffusers format, as written "
        f"by `CogVideoXPipeline.save_pretrained`. {_found(names)}. {FORMS}"
    )


def _found(names: Collection[str]) -> str:
    top = sorted({name.split("/")[0] for name in names})
    return f"Found {', '.join(top[:8])}{', …' if len(top) > 8 else ''}" if top else "It is empty"


def _did_you_mean(name: str) -> str:
    """`(did you mean …?)` where a name is close to a published one."""
    known = {full.rpartition("/")[2].lower(): full for full in PUBLISHED}
    close = get_close_matches(name.lower(), known, n=1, cutoff=0.75)
    return f" (did you mean {known[close[0]]} on the Hugging Face Hub?)" if close else ""


def _from_hub(name: str) -> Path:
    """A repository of the Hub in its local cache; what is no checkpoint costs no gigabytes."""
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(SMALL_FILES)))
        if not (folder / INDEX).is_file():
            raise UnsupportedCheckpoint(_what_it_is(name, list_repo_files(name), above=False))
        read_configuration(folder)
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except UnsupportedCheckpoint:
        raise
    except Exception as error:
        meant = "" if name in PUBLISHED else _did_you_mean(name.rpartition("/")[2])
        raise UnsupportedCheckpoint(
            f"there is no such folder here, and from the Hugging Face Hub it could not be had"
            f"{meant}: {error}"
        ) from error


def _copy_from_storage(uri: str, cache: Path) -> Path:
    """Copy a folder from object storage once; a renamed folder is the sign that it is whole."""
    fs, root, listing = _listing(uri)
    versions = ("size", "ETag", "etag", "mtime", "created")  # as S3, GCS, files and memory say it
    hashes = ("blob_id", "last_modified")  # the Hub's file system, Azure
    state = sorted(
        (
            name,
            *(str(info.get(key)) for key in versions),
            *(str(info[key]) for key in hashes if info.get(key)),
        )
        for name, info in listing.items()
    )
    target = cache / "checkpoints" / hashlib.sha256(repr((uri, state)).encode()).hexdigest()[:16]
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            copy = Path(scratch) / "copy"
            is_large = {name: name.endswith(".safetensors") for name in listing}
            for large in (False, True):
                for name in (name for name in listing if is_large[name] == large):
                    local = copy / name[len(root) :].lstrip("/")
                    local.parent.mkdir(parents=True, exist_ok=True)
                    fs.get_file(name, str(local))
                read_configuration(copy)  # another model is refused before its weights are copied
            try:
                os.rename(copy, target)
            except OSError:
                if not target.is_dir():  # another process finished the same copy first
                    raise
    return target


def _listing(uri: str) -> tuple[Any, str, Mapping[str, Any]]:
    """The file system, the root there, and the files of a checkpoint that count.

    Raises:
        UnsupportedCheckpoint: it is no checkpoint; nothing was copied.
    """
    host, _, path = uri.partition("://")[2].partition("/")
    if host in ("huggingface.co", "hf.co"):
        name = "/".join(path.split("/")[:2])
        raise UnsupportedCheckpoint(f"it is a page of the Hugging Face Hub; give its name: {name}")
    if protocol := unknown_protocol(uri):
        raise UnsupportedCheckpoint(f"the protocol {protocol}:// is not known. {FORMS}")
    fs, root = split(uri)
    try:
        found = fs.find(root, detail=True)
    except FileNotFoundError:
        found = {}
    if not found:
        raise UnsupportedCheckpoint(f"there is no such folder. {FORMS}")
    if list(found) == [root]:
        raise UnsupportedCheckpoint(describe([root.rpartition("/")[2]]) or f"it is a file; {FORMS}")
    names = {name: name[len(root) :].lstrip("/") for name in found}
    if INDEX not in names.values():
        above = fs.exists(root.rpartition("/")[0] + f"/{INDEX}")
        raise UnsupportedCheckpoint(_what_it_is(uri, names.values(), above=above))
    counted = {name: info for name, info in found.items() if name.endswith(HASHED)}
    return fs, root, counted
