"""Shared by the tests of `retake manifest`: samples, and conversion by one format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import ConvertError
from jobs.manifest.conversion.formats import Options, convert
from jobs.manifest.conversion.grouping import Converted


def saved(folder: Path, content: object, name: str = "source.json") -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return str(path)


def put(folder: Path, *names: str) -> None:
    """Files that have a byte in them, and so pass for videos until they are decoded."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def refusal(made: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(ConvertError) as caught:
        made(*args, **options)
    return str(caught.value)


def prompts(row: dict[str, Any]) -> list[str]:
    return [edit["prompt"] for edit in row["edits"]]


def converter(kind: str) -> Callable[..., Converted]:
    """The conversion of one source by a format; its options are those of `Options`."""
    return lambda uri, **options: convert([uri], [kind], Options(**options))


def from_folder(uri: str, given: list[str], pattern: str = "**/*") -> Converted:
    return convert([uri], ["folder"], Options(prompts=given, pattern=pattern))


from_table = converter("table")
from_tgve = converter("tgve")
from_balancecc = converter("balancecc")
from_five = converter("five")
from_ivebench = converter("ivebench")
