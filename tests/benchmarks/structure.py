"""Counts the shape of the code: modules, lines, declarations; not what it does.

    python -m tests.benchmarks.structure [--root DIR]

The sources are parsed, not imported, so any checkout can be counted. The table in
`docs/architecture.md` compares two of them.
"""

from __future__ import annotations

import argparse
import ast
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOMS = ("pipeline", "cluster", "jobs")
LONG_FUNCTION = 40
WITH_PROMPT = {"edit_id", "negative_prompt", "guidance_scale"}
"""What stands beside `prompt`, and no other thing of ours does, in a list of an edit's fields."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[2], metavar="DIR")
    root = parser.parse_args().root
    print("| | |\n|---|---|")
    for name, value in counts(root).items():
        print(f"| {name} | {value} |")


def counts(root: Path) -> dict[str, str]:
    """What the table holds for a checkout, by row."""
    trees = read(root)
    lines = {path: len((root / path).read_text().splitlines()) for path in trees}
    filled = {path: count for path, count in lines.items() if count}
    longest = max(filled, key=lambda path: filled[path])
    folders = Counter(str(path.parent) for path in filled if path.name != "__init__.py")
    edits = [f"{path}: {where}" for path, tree in trees.items() for where in edit_fields(tree)]
    functions = [
        f"{path}: {node.name}" for path, tree in trees.items() for node in long_functions(tree)
    ]
    classes = [node for tree in trees.values() for node in dataclasses_of(tree)]
    storage = [str(path) for path, tree in trees.items() if calls(tree, "url_to_fs")]
    return {
        "modules by folder": ", ".join(f"{name} {n}" for name, n in sorted(folders.items())),
        "lines of a module, median": f"{statistics.median(filled.values()):g}",
        "lines of a module, longest": f"{filled[longest]} ({longest})",
        "declarations of an edit's fields": listed(edits),
        "dataclasses": str(len(classes)),
        f"functions above {LONG_FUNCTION} lines": listed(functions),
        "modules that call `url_to_fs`": listed(storage),
    }


def read(root: Path) -> Mapping[Path, ast.Module]:
    """The parsed modules of the three packages, by path below the root; the training recipe, which
    is not in the wheel, is left out."""
    paths = [path for room in ROOMS for path in sorted((root / room).rglob("*.py"))]
    return {
        path.relative_to(root): ast.parse(path.read_text())
        for path in paths
        if "training" not in path.parts
    }


def edit_fields(tree: ast.Module) -> Iterator[str]:
    """Where a module lists the fields of an edit: in a class, or in a list of their names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            names = {
                one.target.id
                for one in node.body
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
            }
        elif isinstance(node, ast.List | ast.Tuple | ast.Set):
            names = {text for element in node.elts for text in first_text(element)}
        else:
            continue
        if "prompt" in names and names & WITH_PROMPT:
            yield node.name if isinstance(node, ast.ClassDef) else f"line {node.lineno}"


def first_text(node: ast.expr) -> Iterator[str]:
    """The text of a constant, or the first of a pair, as `("prompt", pa.string())`."""
    if isinstance(node, ast.Tuple) and node.elts:
        node = node.elts[0]
    if isinstance(node, ast.Call) and node.args:
        node = node.args[0]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def long_functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.end_lineno:
            if node.end_lineno - node.lineno + 1 > LONG_FUNCTION:
                yield node


def dataclasses_of(tree: ast.Module) -> Iterator[ast.ClassDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from (node for mark in node.decorator_list if "dataclass" in ast.unparse(mark))


def calls(tree: ast.Module, name: str) -> bool:
    found = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(ast.unparse(function).rsplit(".", 1)[-1] == name for function in found)


def listed(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if names else "0"


if __name__ == "__main__":
    main()
