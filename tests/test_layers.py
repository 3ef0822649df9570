"""The house's plan: who may import whom, how large a room may be, and what stays quick to import.

Imports are read from the source, also those inside functions and under `TYPE_CHECKING`.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "cluster", "jobs")

BASE = frozenset(
    {
        "storage",
        "errors",
        "settings",
        "records",
        "scores",
        "dtypes",
        "timing",
        "values",
        "locations",
        "imports",
        "redaction",
        "elsewhere",
        "scores",
    }
)
"""The modules of pipeline that every room but `algorithm` may import."""

ROOMS = {
    "": {"editor", "algorithm", "model", "trajectories", "media", "quality"} | BASE,
    "editor": {"inputs", "plan", "algorithm", "model", "trajectories", "media", "quality"} | BASE,
    "inputs": {"plan", "algorithm", "model", "trajectories", "media"}
    | BASE,  # what a caller may give to the editor
    "plan": {"algorithm"} | BASE,  # what the settings come to along a schedule
    "algorithm": set(),
    "model": {"algorithm"} | BASE,  # it implements the protocol of the algorithm's model
    "trajectories": {"algorithm"} | BASE,  # a trajectory has a schedule
    "media": BASE,
    "quality": {"algorithm", "model"} | BASE,  # a model's folder has a fingerprint
    **dict.fromkeys(BASE, BASE),
}
"""What a room of pipeline may import of the others; "" is pipeline itself, the public API."""

ABOVE = {"pipeline": {"cluster", "jobs"}, "cluster": {"jobs"}, "jobs": set()}
"""The packages that a package may not import."""

ONLY_IN = {
    "ray": ("cluster",),
    "xfuser": ("pipeline.model.parallel",),
    "yunchang": ("pipeline.model.parallel",),
    "typer": ("jobs",),
    "rich": ("jobs",),
}
"""Libraries that only some rooms import."""

MODULES_IN_A_FOLDER = 12
LINES_IN_A_MODULE = 400
LINES_IN_A_FUNCTION = 60
A_PAGE_OF_TEXT = " model_card"
LINES_AIMED_AT = 40

QUICK = (
    "pipeline",
    "pipeline.errors",
    "pipeline.locations",
    "pipeline.model.checkpoint",
    "pipeline.model.sizes",
    "pipeline.records",
    "pipeline.settings",
    "pipeline.storage",
    "jobs.spec",
    "jobs.cli",
    "jobs.manifest.checks",
    "jobs.display",
    "jobs.display.seen",
    "jobs.display.watch",
    "jobs.status.heartbeat",
    "jobs.status.look",
    "jobs.status.stop",
    "jobs.status.totals",
    "jobs.commands.watching",
    "cluster.settings",
    "cluster.events.log",
    "cluster.estimate.plan",
    "cluster.estimate.rates",
    "jobs.logs",
    "jobs.logs.lines",
    "jobs.commands.logs",
    "cluster.job",
    "cluster.rows",
    "cluster.results.schema",
    "cluster.results.newest",
    "cluster.results.compaction",
    "cluster.stages.blocks",
    "cluster.pending.rows",
    "jobs.run",
    "jobs.validate",
    "pipeline.plan",
    "pipeline.imports",
    "pipeline.media.encoding",
    "jobs.demo.job",
    "jobs.report",
)
"""What the commands import before there is work to do, `validate` among them."""


@dataclass(frozen=True)
class Import:
    """One import: the module that imports, its line, and the module that it names."""

    module: str
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.name}"


@cache
def sources() -> dict[str, Path]:
    """The path of each of our modules by its name."""
    paths = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    found = {}
    for path in paths:
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports() -> tuple[Import, ...]:
    return tuple(
        Import(module, node.lineno, name)
        for module, path in sources().items()
        for node in ast.walk(tree(path))
        for name in imported(node, module, is_package=path.name == "__init__.py")
    )


def imported(node: ast.AST, module: str, *, is_package: bool = False) -> Iterator[str]:
    """The names of the modules that a node imports, `import_module("name")` among them."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = module.split(".")[: -(node.level - is_package) or None]
            base = ".".join([*above, base] if base else above)
        for alias in node.names:
            whole = f"{base}.{alias.name}"
            yield whole if whole in sources() else base
    elif isinstance(node, ast.Call) and node.args:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else None
        called = node.func.id if isinstance(node.func, ast.Name) else called
        first = node.args[0]
        if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
            yield str(first.value)


def is_in(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def room_of(module: str) -> str:
    """The room of a module of pipeline: `model` for `pipeline.model.vae`."""
    return module.split(".")[1] if "." in module else ""


def shown(wrong: list[Import]) -> list[str]:
    return [str(one) for one in wrong]


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("import torch.nn as nn, av", {"torch.nn", "av"}),
        ("from pipeline.errors import RowError", {"pipeline.errors"}),
        ("from pipeline import errors, Inversion", {"pipeline.errors", "pipeline"}),
        ("from .errors import RowError", {"pipeline.errors"}),
        ("from . import errors", {"pipeline.errors"}),
        ("def f():\n    import ray", {"ray"}),
        ("if TYPE_CHECKING:\n    import torch", {"torch"}),
        ("importlib.import_module('xfuser')", {"xfuser"}),
    ],
)
def test_the_reader_of_imports_finds(statement: str, names: set[str]) -> None:
    nodes = ast.walk(ast.parse(statement))
    assert {name for node in nodes for name in imported(node, "pipeline.editor")} == names


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_nothing_from_above_it(package: str) -> None:
    assert any(is_in(one.module, package) for one in imports())
    wrong = [
        one
        for one in imports()
        if is_in(one.module, package) and one.name.split(".")[0] in ABOVE[package]
    ]
    assert not wrong, shown(wrong)


def test_nothing_imports_the_tests() -> None:
    wrong = [one for one in imports() if is_in(one.name, "tests")]
    assert not wrong, shown(wrong)


def test_every_module_of_pipeline_is_in_a_room() -> None:
    lost = [m for m in sources() if is_in(m, "pipeline") and room_of(m) not in ROOMS]
    assert not lost, f"put them into one of the rooms {sorted(ROOMS)}: {lost}"


@pytest.mark.parametrize("room", sorted(room or "pipeline itself" for room in ROOMS))
def test_a_room_of_pipeline_imports_only_the_rooms_below_it(room: str) -> None:
    room = room if room in ROOMS else ""
    wrong = [
        one
        for one in imports()
        if is_in(one.module, "pipeline")
        and is_in(one.name, "pipeline")
        and room_of(one.module) == room
        and room_of(one.name) not in ROOMS[room] | {room}
    ]
    assert not wrong, shown(wrong)


def test_the_algorithm_imports_torch_and_the_standard_library_only() -> None:
    wrong = [
        one
        for one in imports()
        if is_in(one.module, "pipeline.algorithm")
        and not is_in(one.name, "pipeline.algorithm")
        and one.name.split(".")[0] not in sys.stdlib_module_names | {"torch"}
    ]
    assert not wrong, shown(wrong)


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_library_is_imported_only_in(library: str) -> None:
    wrong = [
        one
        for one in imports()
        if is_in(one.name, library) and not any(is_in(one.module, r) for r in ONLY_IN[library])
    ]
    assert not wrong, shown(wrong)


def test_storage_alone_turns_uris_into_file_systems() -> None:
    users = [m for m, path in sources().items() if "url_to_fs" in path.read_text(encoding="utf-8")]
    assert users == ["pipeline.storage.systems"]


def test_no_folder_has_more_than_a_dozen_modules() -> None:
    folders = {path.parent for path in sources().values()}
    counts = {
        str(folder.relative_to(ROOT)): len({*folder.glob("*.py")} - {folder / "__init__.py"})
        for folder in folders
    }
    assert not {folder: n for folder, n in counts.items() if n > MODULES_IN_A_FOLDER}


def test_no_module_is_longer_than_four_hundred_lines() -> None:
    lines = {m: len(path.read_text().splitlines()) for m, path in sources().items()}
    assert not {module: n for module, n in lines.items() if n > LINES_IN_A_MODULE}


def test_no_function_is_longer_than_a_screen() -> None:
    """Lines are counted with the docstring. Those above the aim are printed (`pytest -rP`)."""
    lengths = {
        f"{module}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for module, path in sources().items()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    longest = sorted(lengths.items(), key=lambda item: -item[1])
    print(f"functions of more than {LINES_AIMED_AT} lines:")
    print(*(f"{n:4} {name}" for name, n in longest if n > LINES_AIMED_AT), sep="\n")
    long = {name: n for name, n in longest if n > LINES_IN_A_FUNCTION}
    assert not [name for name in long if not name.endswith(A_PAGE_OF_TEXT)]


def test_what_a_command_imports_before_it_works_imports_neither_torch_nor_ray() -> None:
    program = (
        "import importlib, json, sys\n"
        "heavy, brought = {'torch', 'ray', 'diffusers', 'transformers'}, {}\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    if new := sorted(heavy & set(sys.modules)):\n"
        "        brought[name] = new\n"
        "        heavy -= set(new)\n"
        "print(json.dumps(brought))"
    )
    assert output_of(program, *QUICK) == {}


def test_the_driver_of_the_demo_never_imports_torch(tmp_path: Path) -> None:
    program = (
        "import json, sys; from pathlib import Path\n"
        "import jobs.report, jobs.run; from cluster import dataflow\n"
        "from jobs.demo.job import write_demo\n"
        "from jobs.prepare import prepare; from jobs.spec import parse_job\n"
        "job = prepare(parse_job(write_demo(Path(sys.argv[1])), [], source='the demo')).job\n"
        "from tests.pending_rows import pending_of; from cluster.stages.blocks import work_of\n"
        "(rows,) = pending_of(job)\n"
        "first = dataflow.first_prompts.First(work_of(rows.work), True)\n"
        "assert len(dataflow.first_prompts.find_missing(job, first).prompts) == 10\n"
        "print(json.dumps(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules))))"
    )
    assert output_of(program, str(tmp_path)) == []


def test_a_rank_of_the_prompts_stage_imports_no_diffusers() -> None:
    program = (
        "import json, sys, torch\n"
        "import cluster.ranks.encode_prompts as module\n"
        "info = module.open_checkpoint('embedded', parts=module.PROMPT_PARTS)\n"
        "t5 = module.load_text_encoder(info, torch.float32, 'cpu')\n"
        "module.encode_prompt(*t5, 'a red square', 8)\n"
        "print(json.dumps(sorted({'diffusers', 'transformers'} & set(sys.modules))))"
    )
    assert output_of(program) == ["transformers"]


def test_help_imports_neither_torch_nor_ray() -> None:
    program = (
        "import json, sys; from typer.testing import CliRunner; from jobs.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "slow = {'torch', 'ray', 'diffusers', 'pyarrow', 'pydantic'}\n"
        "print(json.dumps(sorted(slow & set(sys.modules))))"
    )
    assert output_of(program) == []


def output_of(program: str, *arguments: str) -> object:
    """The JSON on the last line that a Python program prints."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])
