"""docs/inputs.md says what the tests show: each row has a test, and each test that names one is
right about its name."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest

from pipeline.settings import Limits
from tests.docs.pages import ROOT

PAGE = ROOT / "docs/inputs.md"
TESTS = ROOT / "tests/pipeline/media"


def test_each_row_about_video_files_has_a_test() -> None:
    rows = first_cells(PAGE.read_text())
    assert [name for name, count in Counter(rows).items() if count > 1] == []
    assert set(rows) == named_rows(TESTS)


def test_the_codes_on_the_page_are_those_of_the_user_guide() -> None:
    codes = set(re.findall(r"`((?:video|no)_\w+)`", PAGE.read_text()))
    guide = (ROOT / "docs/guide.md").read_text()
    assert codes and not [code for code in codes if f"| `{code}` |" not in guide]


def test_the_limits_on_the_page_are_the_default_ones() -> None:
    page = PAGE.read_text()
    for name, value in vars(Limits()).items():
        assert f"`limits.{name}` ({value:,.10g}" in page


@pytest.mark.parametrize("row", ["| A | b |", "| `A` x | b \\| c |"])
def test_rows_are_found(row: str) -> None:
    table = f"| the file | what happens |\n|---|---|\n{row}\n"
    assert first_cells(table) == [row.split(" | ", maxsplit=1)[0].removeprefix("| ")]


def first_cells(page: str) -> list[str]:
    """What stands in the first cell of each row of a page's tables, without the headings."""
    cells = re.findall(r"^\| (.+?) \| .+ \|$", page, re.MULTILINE)
    return [cell for cell in cells if cell != "the file"]


def named_rows(folder: Path) -> set[str]:
    """The rows that the tests of a folder say that they show."""
    package = ".".join(folder.relative_to(ROOT).parts)
    modules = [importlib.import_module(f"{package}.{f.stem}") for f in folder.glob("test_*.py")]
    tests = [value for module in modules for value in vars(module).values()]
    return {name for test in tests for name in getattr(test, "input_rows", ())}
