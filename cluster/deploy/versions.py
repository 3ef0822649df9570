"""The versions of what is installed here, which machines elsewhere must have too."""

from __future__ import annotations

import json
import platform
import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PACKAGE = "retake"
CUDA = "13.0"
"""What PyPI's torch 2.13 is built with; its wheels bring the libraries, machines the driver."""
UV = "0.13.9"
"""Of uv, which brings a Python of any version to any Linux, without the system's packages."""
OF_A_BUILD = ("triton",)
"""Packages that each build of torch names a version of: the CPU's is not the GPU's."""


@dataclass(frozen=True)
class Versions:
    """What runs here.

    Args:
        retake, ray, torch, python: versions; that of Python whole, as 3.11.7.
        packages: the exact version of every package that Retake needs, by name, itself left out.
        source: the folder that Retake was installed from, where it is one; else "".
    """

    retake: str
    ray: str
    torch: str
    python: str
    packages: tuple[tuple[str, str], ...]
    source: str = ""

    @property
    def short_python(self) -> str:
        """As 3.11: what a wheel and an image are chosen by."""
        return ".".join(self.python.split(".")[:2])

    @property
    def wheel(self) -> str:
        """The file name of Retake's wheel of this version."""
        return f"{PACKAGE}-{self.retake}-py3-none-any.whl"

    @property
    def constraints(self) -> str:
        """All packages at exactly these versions, for pip's `-r` or `-c`; Retake is not in it."""
        lines = [f"{name}=={version}" for name, version in self.packages]
        return "\n".join(
            [f"# What retake {self.retake} was used with, on Python {self.python}.", *lines, ""]
        )


@cache
def installed(extras: tuple[str, ...] = ()) -> Versions:
    """The versions that are installed here.

    Args:
        extras: of Retake, whose packages are needed too; those that are not installed are left out.
    """
    from pipeline import __version__

    found: dict[str, str] = {}
    seen = set()
    todo = [(PACKAGE, extras)]
    while todo:
        name, extras = todo.pop()
        package = _distribution(name)
        if package is None or (name, extras) in seen:
            continue
        seen.add((name, extras))
        found[package.metadata["Name"]] = package.version
        for line in package.requires or ():
            one = Requirement(line)
            marker = one.marker
            if not marker or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                todo.append((_plain(one.name), tuple(sorted(one.extras))))
    found.pop(PACKAGE, None)
    if "cpu" in _version("torch"):
        found = {name: one for name, one in found.items() if name not in OF_A_BUILD}
    return Versions(
        retake=__version__,
        ray=_version("ray"),
        torch=_public(_version("torch")),
        python=platform.python_version(),
        packages=tuple((name, _public(found[name])) for name in sorted(found, key=str.lower)),
        source=_source(),
    )


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _public(version: str) -> str:
    """Without the build: `2.13.0+cpu` of this machine is `2.13.0` where there are GPUs."""
    return version.partition("+")[0]


def _distribution(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _version(name: str) -> str:
    found = _distribution(name)
    return found.version if found else "0"


def _source() -> str:
    found = _distribution(PACKAGE)
    text = found.read_text("direct_url.json") if found else None
    url = json.loads(text).get("url", "") if text else ""
    folder = url.removeprefix("file://")
    return folder if folder != url and Path(folder).is_dir() else ""
