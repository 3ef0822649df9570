"""Paths and URIs as text: taken apart, completed, compared. Nothing here opens a file."""

from __future__ import annotations

import glob
import os
import posixpath
import re
from pathlib import Path

import fsspec

LINKING = frozenset(
    {"blockcache", "cached", "dir", "filecache", "libarchive", "reference", "simplecache"}
    | {"tar", "zip"}
)
"""Protocols that read from the next link of a chain, as in `zip://a.mp4::s3://bucket/clips.zip`."""
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""By protocol, the extra of this package that installs what it needs."""
LOCAL = (None, "file", "local")
WINDOWS = re.compile(r"\\\\|[A-Za-z]:[/\\]")


def links(location: str) -> list[str]:
    """The links of a chain of file systems; a location without any is one link.

    `::` in a file's own name makes no chain.
    """
    *heads, last = location.split("::")
    word = re.compile(r"[a-z0-9]+") if "://" in location else re.compile("|".join(LINKING))
    if heads and all(protocol(head) in LINKING or word.fullmatch(head) for head in heads):
        return [*heads, last]
    return [location]


def protocol(link: str) -> str | None:
    """The protocol of one link; None for a local path."""
    found = re.match(r"([A-Za-z0-9+._-]+)://", link)
    return found[1] if found else None


def unknown_protocol(location: str) -> str | None:
    """The first protocol of a URI, or of a chain of them, that nothing here can open."""
    *heads, last = links(location)
    names = [protocol(head) or head for head in heads]
    if (of_last := protocol(last)) is not None:
        names.append(of_last)
    return next((name for name in names if name not in fsspec.available_protocols()), None)


def problem(location: str) -> str | None:
    """Why nothing can open a location, and the way out; None where something may."""
    if (name := unknown_protocol(location)) is not None:
        return (
            f"has the unknown protocol {name!r}; "
            "expected a path, or one that fsspec knows, such as s3, gs, https, file"
        )
    found = re.match(r"([a-z0-9]{2,}):/(?!/)", location)
    if found and found[1] in fsspec.available_protocols() and found[1] not in LOCAL:
        right = f"{found[1]}://{location[found.end() :]}"
        return f"has one slash after its protocol; expected {right}"
    if protocol(links(location)[-1]) in LINKING:
        return f"names no archive or store to read it from; expected {location}::LOCATION"
    return None


def is_local(location: str) -> bool:
    """Whether a location is on, or in a file on, a file system of this machine."""
    return protocol(links(location)[-1]) in LOCAL


def is_web(location: str) -> bool:
    """Whether a location is, or is in a file at, an address of a web server."""
    return protocol(links(location)[-1]) in ("http", "https")


def expanded(location: str) -> str:
    """The location with `~` and `~user` at the start of a local path, or of a link, replaced."""
    return "::".join(os.path.expanduser(link) for link in links(location))


def absolute(location: str) -> str:
    """A local path made absolute, so that every process means the same; URIs stay as they are."""
    return "::".join(
        link if _is_uri(link) or _is_word(link) else str(Path(link).absolute())
        for link in map(os.path.expanduser, links(location))
    )


def is_absolute(location: str) -> bool:
    """Whether a location means the same whatever folder it is read in."""
    if len(links(location)) > 1 or _is_uri(location):
        return True
    return bool(os.path.expanduser(location).startswith("/") or WINDOWS.match(location))


def resolve_uri(location: str, base: str | None) -> str:
    """A location itself if it is absolute or `base` is None, else inside of the folder `base`."""
    if is_absolute(location):
        # Object stores know no '..': it has to be taken out here.
        return normalised(location) if _is_object(location) else location
    if base is None:
        return location
    found = links(base)
    place = _place_of_path(found)
    name = protocol(found[place])
    if name is None:
        found[place] = os.path.join(found[place], location)
    else:
        path = found[place].removeprefix(f"{name}://")
        host, slash, folder = ("", "", path) if name in LINKING else path.partition("/")
        inside = posixpath.normpath(posixpath.join("/", folder, location))
        found[place] = f"{name}://{host}{inside if host or slash else inside[1:]}"
    return "::".join(found)


def parent(location: str) -> str:
    """The folder of a file, without a slash at its end."""
    found = links(location)
    place = _place_of_path(found)
    name = protocol(found[place]) or ""
    path = found[place].removeprefix(f"{name}://")
    if name in ("http", "https"):
        path = re.split("[?#]", path, maxsplit=1)[0]
    head = path.rstrip("/").rpartition("/")[0]
    if not name:
        found[place] = head or ("/" if path.startswith("/") else ".")
    else:
        found[place] = f"{name}://{head}"
    return "::".join(found)


def beside(location: str, path: str) -> str:
    """The URI of another path on the file system of `location`, a chain."""
    found = links(location)
    place = _place_of_path(found)
    name = protocol(found[place])
    found[place] = path if name is None else f"{name}://{path}"
    return "::".join(found)


def before_pattern(location: str) -> str:
    """The folder above the first part of a glob that has a pattern in it."""
    parts = location.split("/")
    first = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    return "/".join(parts[:first]) or ("/" if location.startswith("/") else ".")


def normalised(location: str) -> str:
    """The one spelling of a location: no `.`, no `..`, no `~`; `//` only where it means something.

    Only the text counts: links in the file system are not followed.
    """
    return "::".join(map(_normal_link, links(location)))


def _normal_link(link: str) -> str:
    if _is_word(link) or not link.strip() or WINDOWS.match(link):
        return link
    if re.match(r"file:/(?!/)", link):
        link = f"file://{link[len('file:') :]}"
    name = protocol(link)
    if name is None:
        path = os.path.expanduser(link)
        return re.sub("^//+", "/", posixpath.normpath(path))
    rest = link.removeprefix(f"{name}://")
    if name in LOCAL:
        host, slash, path = rest.partition("/")
        host = "" if host == "localhost" else host
        return f"{name}://{host}{_without_dots(slash + re.sub('/+', '/', path))}"
    cut = re.search("[?#]", rest) if name in ("http", "https", "s3", "s3a") else None
    path, query = (rest[: cut.start()], rest[cut.start() :]) if cut else (rest.rstrip("/"), "")
    if name in LINKING:
        return f"{name}://{posixpath.normpath(path)}"
    host, slash, path = path.partition("/")
    return f"{name}://{host}{_without_dots(slash + path)}{query}"


def _without_dots(path: str) -> str:
    """A path without its `.` and `..`; empty parts, which are names in object storage, stay."""
    kept: list[str] = []
    for part in path.split("/"):
        if part == ".." and len(kept) > 1:
            kept.pop()
        elif part not in (".", ".."):
            kept.append(part)
    return "/".join(kept)


def _place_of_path(found: list[str]) -> int:
    """Which link of a chain has the path of the file: `simplecache` has none, `zip://a` has."""
    return next(n for n, link in enumerate(found) if not _is_word(link) or n == len(found) - 1)


def _is_word(link: str) -> bool:
    return link in LINKING


def _is_uri(link: str) -> bool:
    return protocol(link) is not None or link.startswith("file:/")


def _is_object(location: str) -> bool:
    """Whether a location is in a store whose names are not folders on a disk."""
    return not is_local(location) and not is_web(location)
