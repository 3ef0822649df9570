"""Retake itself as one file that travels with a job: the same bytes for the same code.

Ray knows a package by the hash of its bytes, so code that a cluster has had before is not sent
again. What a wheel holds is in it, and the metadata that an installed package has beside it: the
head and the nodes compare their packages with what it requires.
"""

from __future__ import annotations

import io
import os
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path

from pipeline import __version__

PACKAGES = ("pipeline", "cluster", "jobs")
NOT_CODE = ("jobs/demo/training/", "jobs/demo/gallery.png", "jobs/examples/")
CHECKPOINT = "jobs/demo/checkpoint/"
DATE = (1980, 1, 1, 0, 0, 0)
"""Of every file, so that the same code has the same bytes."""


def code_package(*, embedded: bool) -> bytes:
    """The three packages, as a zip file.

    Args:
        embedded: with the embedded checkpoint, which is nine tenths of it.
    """
    files = {name: path.read_bytes() for name, path in _files(embedded)}
    return zipped({**files, f"retake-{__version__}.dist-info/METADATA": _metadata()})


def zipped(files: Mapping[str, bytes], mode: int = 0o644) -> bytes:
    """Files by name as a zip file; the same bytes for the same files.

    Args:
        mode: that they get where they are unpacked.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, data in sorted(files.items()):
            about = zipfile.ZipInfo(name, DATE)
            about.compress_type = zipfile.ZIP_DEFLATED
            about.external_attr = (0o100000 | mode) << 16
            archive.writestr(about, data)
    return buffer.getvalue()


def _files(embedded: bool) -> Iterator[tuple[str, Path]]:
    """The files by their names in the package."""
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations
        folder = Path(next(iter(spec.submodule_search_locations)))
        for place, folders, names in os.walk(folder):
            folders[:] = [one for one in folders if one != "__pycache__" and one[0] != "."]
            for one in names:
                path = Path(place, one)
                name = f"{package}/{path.relative_to(folder).as_posix()}"
                left_out = NOT_CODE if embedded else (*NOT_CODE, CHECKPOINT)
                if one[0] != "." and not one.endswith(".pyc") and not name.startswith(left_out):
                    yield name, path


def requirements() -> list[str]:
    """What this package requires, each as `torch>=2.6`.

    A checkout says it in its `pyproject.toml`: what is installed of it may be from another day.
    """
    spec = find_spec("pipeline")
    assert spec is not None
    assert spec.origin
    with suppress(OSError):
        text = Path(spec.origin).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8")
        project = tomllib.loads(text).get("project", {})
        if project.get("name") == "retake":
            return list(project["dependencies"])
    try:
        return list(requires("retake") or ())
    except PackageNotFoundError:
        return []


def _metadata() -> bytes:
    lines = ["Metadata-Version: 2.1", "Name: retake", f"Version: {__version__}"]
    return "\n".join([*lines, *(f"Requires-Dist: {one}" for one in requirements()), ""]).encode()
