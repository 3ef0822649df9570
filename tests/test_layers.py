"""Dependencies point one way: jobs -> cluster -> pipeline; and help is quick."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ABOVE = {"pipeline": {"cluster", "jobs", "ray", "typer", "rich"}, "cluster": {"jobs", "typer"}}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", sorted(ABOVE))
def test_a_room_imports_nothing_from_above_it(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    wrong = {path.name: bad for path in files if (bad := imported(path) & ABOVE[room])}
    assert not wrong


def test_help_imports_neither_torch_nor_ray() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from jobs.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print(sorted({'torch', 'ray', 'diffusers', 'pyarrow', 'pydantic'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"


def test_no_module_is_longer_than_four_hundred_lines() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for room in ("pipeline", "cluster", "jobs")
        for path in (ROOT / room).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long
