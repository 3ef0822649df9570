"""YAML with comments says what its values say, whatever they are."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.deploy.commented import Why, commented, plain

SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=30)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(min_size=1, max_size=8), inner, max_size=3)
        | st.dictionaries(
            st.text(min_size=1, max_size=8),
            st.builds(Why, inner, st.text("ab c\n", max_size=200)),
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(min_size=1, max_size=8), VALUES, min_size=1, max_size=4))
def test_a_reader_gets_the_values(value: dict[str, Any]) -> None:
    assert yaml.safe_load(commented(value, "a head")) == plain(value)


def test_a_comment_stands_above_its_key() -> None:
    values = {"list": [{"name": Why("a", "why a"), "more": [1]}], "text": Why("x\n y\n", "why x")}
    assert commented(values, "head").splitlines() == [
        "# head",
        "list:",
        "  # why a",
        "  - name: a",
        "    more:",
        "      - 1",
        "# why x",
        "text: |",
        "  x",
        "   y",
    ]
