"""docs/bad_inputs.md says what each bad input costs and gets: each of them is made again."""

from __future__ import annotations

import re

import pytest

from tests.docs.bad_inputs.page import BAD, rows
from tests.docs.bad_inputs.provoke import Outcome
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs/bad_inputs.md").read_text()
INPUTS = [(heading, what, part) for heading, some in BAD.items() for what, _, part in some]


@pytest.fixture(scope="module")
def made() -> dict[tuple[str, str], tuple[str, Outcome]]:
    """By heading and input, the row that the page must have, and what came of the input."""
    found = {}
    for heading, row, outcome in rows():
        found[heading, row.removeprefix("| ").partition(" | ")[0]] = row, outcome
    return found


@pytest.mark.parametrize(("heading", "what", "part"), INPUTS, ids=[i[1] for i in INPUTS])
def test_a_bad_input_gets_what_the_page_says(
    heading: str, what: str, part: str, made: dict[tuple[str, str], tuple[str, Outcome]]
) -> None:
    row, (costs, gets) = made[heading, what]
    assert row in rows_of_the_page(heading), (costs, gets)
    assert part in gets


def test_the_page_has_no_other_rows_and_as_many_as_it_says() -> None:
    shown = [(h, row.split(" | ")[0][2:]) for h in BAD for row in rows_of_the_page(h)]
    assert shown == [(heading, what) for heading, what, _ in INPUTS]
    assert f"{len(shown)} kinds of bad input" in PAGE
    assert len(shown) >= 60


def rows_of_the_page(heading: str) -> list[str]:
    part = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [row for row in re.findall(r"^\| .+ \|$", part, re.MULTILINE) if "it costs" not in row]
