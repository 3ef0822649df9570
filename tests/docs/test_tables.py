"""The tables that repeat declarations say what the declarations say."""

from __future__ import annotations

import ast

import pytest

from docs import tables
from pipeline.errors import ErrorCode
from tests.docs.pages import ROOT

GUIDE = (ROOT / "docs/guide.md").read_text()
WHOLE = ("JobSpec", "VideoSpec", "EditSpec", "EditResult")


@pytest.mark.parametrize("page", tables.PAGES)
def test_the_generated_tables_are_up_to_date(page: str) -> None:
    text = (ROOT / page).read_text()
    assert text == tables.filled_in(text), "run `python -m docs.tables`"


@pytest.mark.parametrize(
    "name", ["JobSpec", "VideoSpec", "EditSpec", "EditResult", *tables.PREFIXES]
)
def test_every_setting_and_every_column_is_in_the_guide(name: str) -> None:
    assert f"<!-- table: {name} -->" in GUIDE


def test_every_section_of_the_settings_has_a_table() -> None:
    sections = {
        node.name
        for source in (
            "pipeline/settings/__init__.py",
            "pipeline/settings/reconstruction.py",
            "cluster/settings.py",
        )
        for node in ast.parse((ROOT / source).read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    assert sections - set(tables.PREFIXES) <= {"EditingSettings"}


def test_every_error_code_is_in_the_guide() -> None:
    rows = [line for line in GUIDE.splitlines() if line.startswith("| `")]
    assert [code for code in ErrorCode if not any(f"`{code}`" in row for row in rows)] == []


def test_a_table_has_a_row_for_each_field_with_its_type_default_and_text() -> None:
    source = '''
class Inversion:
    """How to invert.

    Args:
        steps: how many,
            in all.
        width, height: in pixels.
        method: which.

    Raises:
        ValueError: never.
    """

    steps: Annotated[int, Ge(1), Le(1000)] = 50
    width: Annotated[int, Ge(16)] | None = None
    height: Annotated[int, Ge(16)] | None = None
    method: Literal["pec", "a|b"] = "pec"
    window: tuple[float, float] = (0.0, 0.4)
'''
    (declaration,) = ast.parse(source).body
    assert isinstance(declaration, ast.ClassDef)
    with pytest.raises(tables.NoSuchTable, match=r"Inversion\.window: `Args:` says nothing of it"):
        tables.fields_of(declaration)
    del declaration.body[-1]
    assert tables.table("Inversion", tables.fields_of(declaration)).splitlines()[2:] == [
        "| `inversion.steps` | integer ≥ 1, ≤ 1000 | `50` | how many, in all. |",
        "| `inversion.width`, `inversion.height` | integer ≥ 16 | `null` | in pixels. |",
        "| `inversion.method` | `pec`, `a\\|b` | `pec` | which. |",
    ]


def test_a_marker_that_names_no_class_is_refused() -> None:
    with pytest.raises(tables.NoSuchTable, match="there is no class Nothing"):
        tables.filled_in("<!-- table: Nothing -->\n<!-- end -->")
