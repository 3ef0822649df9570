"""docs/messages.md shows what is printed: each mistake on it is made again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.docs.mistakes.page import MISTAKES, cell, provoked
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs/messages.md").read_text()


class Row(NamedTuple):
    heading: str
    what: str
    message: str
    grade: str


def rows() -> Iterator[Row]:
    for part in PAGE.split("\n## ")[1:]:
        heading, _, body = part.partition("\n")
        for found in re.findall(r"^\| (.+?) \| `` (.+) `` \| (\w+) \|$", body, re.MULTILINE):
            yield Row(heading, *found)


ROWS = list(rows())


@pytest.fixture(scope="module")
def printed() -> dict[tuple[str, str], str]:
    """By heading and what was done, the message."""
    return {(heading, what): message for heading, what, message in provoked()}


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.heading}: {row.what}" for row in ROWS])
def test_a_mistake_gets_the_message_of_the_page(
    row: Row, printed: dict[tuple[str, str], str]
) -> None:
    message = printed[row.heading, row.what]
    assert fits(row.message, message), message


@pytest.mark.parametrize(
    ("text", "printed", "right"),
    [("a … d", "a b c d", True), ("a … d", "a b c", False), ("a", "a b", False)],
)
def test_what_is_left_out_may_be_anything(text: str, printed: str, right: bool) -> None:
    assert fits(text, printed) == right


def test_each_mistake_is_on_the_page() -> None:
    made = [(heading, cell(what)) for heading, some in MISTAKES.items() for what in some]
    assert [(row.heading, row.what) for row in ROWS] == made


def test_no_message_is_poor_and_the_counts_are_right() -> None:
    grades = [row.grade for row in ROWS]
    assert set(grades) <= {"good", "fair"}
    good, fair = grades.count("good"), grades.count("fair")
    assert f"| now | {good} | {fair} | 0 | {good + fair} |" in PAGE
    assert f"{good + fair} mistakes were made" in PAGE


def test_a_message_holds_no_path_of_the_machine() -> None:
    folders = ("/home/", "/root", "/work", "/tmp/")
    known = "(/tmp/ray, or RAY_TMPDIR)"
    assert not [r for r in ROWS if any(f in r.message.replace(known, "") for f in folders)]


def fits(text: str, message: str) -> bool:
    """Whether a text of the page, in which `…` stands for anything, is that of a message."""
    pattern = ".*".join(map(re.escape, text.split("…")))
    return re.fullmatch(pattern, message, re.DOTALL) is not None
