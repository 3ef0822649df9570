"""`make mutants`: how many small faults in the code the quick tests notice.

Cosmic-ray's operators make the faults: one number, comparison, operator, condition, loop, exception
or decorator changed at a time. A seeded sample of them is judged, each by the quick tests of its
own room. The sample takes places first and then one fault at each, since a `+` alone has eleven.

Not taken: what does not compile, and what changes only type annotations or the text of an error.
Docstrings stay too, since cosmic-ray changes no strings.

Importing torch and diffusers costs seconds: this process does it once and forks a child for every
fault, which has one thread and imports code and tests from a copy of the tree with the fault. The
checkout is never written to. A child that is out of time counts as killed: it made a test hang.

`results.md` is written beside this file, `tolerated.toml` explains the faults that may stay. The
exit status is 1 where less than `LEAST_PERCENT` of the others were noticed.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", PYTHONDONTWRITEBYTECODE="1")

import argparse
import ast
import importlib
import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

SEED, LEAST_PERCENT = 20260, 90


class Room(NamedTuple):
    """A module, what of it is mutated, and the arguments of pytest that judge it.

    Args:
        sample: how many faults; fewer where it has not so many places.
        functions: only what lies in these; by default the whole module.
    """

    module: str
    tests: tuple[str, ...]
    sample: int
    functions: tuple[str, ...] = ()


# fmt: off
INVERSION = ("tests/pipeline/algorithm/test_inversion.py",)
RECONSTRUCTION = ("tests/pipeline/algorithm/test_reconstruction.py",)
SCHEDULE = ("tests/pipeline/algorithm/test_schedule.py", *INVERSION)
SCRIPT = "tests/pipeline/algorithm/test_script.py"
TRAJECTORY = ("tests/pipeline/trajectories/test_trajectory.py",)
KEYS = ("tests/cluster/ranks/test_editing.py", "-k", "key or seed_of_its_own")
NAMES = ("tests/pipeline/model/test_checkpoint.py", "-k", "fingerprint")
WEIGHTS = ("tests/pipeline/model/folder/test_weights.py",)
VOCABULARY = ("tests/pipeline/model/folder/test_vocabulary.py",)
CHECK = tuple(f"tests/cluster/test_{name}.py" for name in ("job", "rows", "stages", "selection"))
ROOMS = (
    Room("cluster/ranks/owner.py", ("tests/cluster/ranks/test_owner.py",), 20),
    Room("cluster/pending/check.py", CHECK, 10),
    Room("cluster/job.py", ("tests/cluster/test_job.py",), 6),
    Room("cluster/results/newest.py", ("tests/cluster/test_results.py",), 14),
    Room("cluster/results/compaction.py", ("tests/cluster/test_results.py",), 12),
    Room("cluster/rows.py", ("tests/cluster/test_rows.py",), 26),
    Room("pipeline/algorithm/schedule.py", (*SCHEDULE, SCRIPT), 22),
    Room("pipeline/algorithm/inversion.py", INVERSION, 24),
    Room("pipeline/algorithm/reconstruction.py", RECONSTRUCTION, 20),
    Room("pipeline/trajectories/reader.py", TRAJECTORY, 16),
    Room("pipeline/trajectories/writer.py", TRAJECTORY, 10),
    Room("pipeline/trajectories/index.py", TRAJECTORY, 18),
    Room("cluster/ranks/editing.py", KEYS, 8, ("trajectory_key", "seed")),
    Room("pipeline/model/folder/fingerprint.py", NAMES, 14, ("fingerprint", "samples")),
    Room("pipeline/model/folder/weights.py", WEIGHTS, 20),
    Room("pipeline/model/folder/vocabulary.py", VOCABULARY, 14),
)
IMPORTED_ONCE = (
    "av", "diffusers", "fsspec", "hypothesis", "numpy", "pyarrow.parquet", "torch",
    "safetensors.torch", "transformers", "transformers.models.t5.modeling_t5",
    "diffusers.models.transformers.cogvideox_transformer_3d",
    "diffusers.models.autoencoders.autoencoder_kl_cogvideox",
    "diffusers.schedulers.scheduling_ddim_cogvideox",
    "diffusers.schedulers.scheduling_ddim_inverse",
)
# fmt: on
OURS = ("pipeline", "cluster", "jobs", "tests")
HERE = Path(__file__).parent
ROOT = HERE.parent.parent


class Mutant(NamedTuple):
    """One fault: where it is, what made it, and the whole module with it."""

    room: Room
    line: int
    operator: str
    key: tuple[str, str, str]  # module, function, changed line: it outlives that lines move
    source: str


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--only", default="", help="the modules whose path has this in it")
    only = parser.parse_args().only
    began = time.monotonic()
    for name in IMPORTED_ONCE:
        importlib.import_module(name)
    found: dict[Mutant, bool] = {}  # whether it was noticed
    with tempfile.TemporaryDirectory() as scratch:
        ignored = shutil.ignore_patterns(".*", "__pycache__")
        copy = Path(shutil.copytree(ROOT, Path(scratch, "tree"), ignore=ignored))
        for room in (room for room in ROOMS if only in room.module):
            usual = time.monotonic()
            if not passes(copy, room.tests, 600):
                raise SystemExit(f"the tests of {room.module} fail as they stand: {room.tests}")
            usual = time.monotonic() - usual
            file = copy / room.module
            for mutant in sampled(room, random.Random(f"{SEED} {room.module}")):
                file.write_text(mutant.source)
                found[mutant] = not passes(copy, room.tests, 15 + 2 * usual)
                file.write_text((ROOT / room.module).read_text())
                word = "killed  " if found[mutant] else "SURVIVED"
                print(f"{word} {room.module}:{mutant.line} {mutant.key[2]}", flush=True)
    minutes = (time.monotonic() - began) / 60
    table, percent = report(found, f"seed {SEED}, {minutes:.0f} minutes")
    print(table)
    if not only:
        Path(HERE, "results.md").write_text(table)
    return int(percent < LEAST_PERCENT)


def sampled(room: Room, draw: random.Random) -> Iterator[Mutant]:
    """The faults of a module that are judged."""
    source = (ROOT / room.module).read_text()
    places: dict[tuple[Any, Any], list[tuple[str, int, str]]] = {}
    for name in operator_names():
        if get_operator(name).arguments():
            continue
        occurrence = 0
        for node in ast_nodes(get_ast(source)):
            for start, end in get_operator(name)().mutation_positions(node):
                function = function_of(node)
                if not room.functions or function.split(".")[-1] in room.functions:
                    places.setdefault((start, end), []).append((name, occurrence, function))
                occurrence += 1
    order = sorted(places)
    draw.shuffle(order)
    lines, taken = source.splitlines(), 0
    for place in order:
        name, occurrence, function = draw.choice(places[place])
        mutated = mutate_code(source, get_operator(name)(), occurrence)
        if taken == room.sample or mutated is None or meaning(mutated) in (None, meaning(source)):
            continue
        taken += 1
        changed = enumerate(zip(lines, mutated.splitlines(), strict=False), 1)
        line, (_, new) = next((n, pair) for n, pair in changed if pair[0] != pair[1])
        text = f"without {lines[place[0][0] - 1]}" if "Remove" in name else new.strip()
        yield Mutant(room, line, name.split("/")[-1], (room.module, function, text), mutated)


def function_of(node: Any) -> str:
    """`Class.method` around a node of parso's tree; empty at the top of a module."""
    names = []
    while node := node.search_ancestor("funcdef", "classdef"):
        names.append(node.name.value)
    return ".".join(reversed(names))


class Meaning(ast.NodeTransformer):
    """Takes out what a run does not see: annotations, and the texts of errors that are raised."""

    def visit(self, node: ast.AST) -> ast.AST:
        for name in ("annotation", "returns"):
            if getattr(node, name, None):
                setattr(node, name, ast.Constant(None))
        if isinstance(node, ast.Raise):
            for text in ast.walk(node):
                if isinstance(text, ast.JoinedStr):
                    text.values = []
        return self.generic_visit(node)


def meaning(source: str) -> str | None:
    """What a module does, to be compared; None where it does not compile."""
    try:
        compile(source, "mutant", "exec")
    except (SyntaxError, ValueError):
        return None
    return ast.dump(Meaning().visit(ast.parse(source)))


def passes(copy: Path, tests: Sequence[str], limit_s: float) -> bool:
    """Whether the tests pass in a copy of the tree, within a time."""
    child = multiprocessing.get_context("fork").Process(target=judge, args=(copy, tests))
    child.start()
    child.join(limit_s)
    code = child.exitcode
    assert child.pid
    with suppress(ProcessLookupError):  # the child leads a group: its ranks end with it
        os.killpg(child.pid, signal.SIGKILL)
    child.join()
    return code == 0


def judge(copy: Path, tests: Sequence[str]) -> None:
    """In a child: run pytest on the copy, and end with its exit status."""
    os.setsid()
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    sys.dont_write_bytecode = True
    sys.path[:] = [str(copy), *(p for p in sys.path if p and Path(p).resolve() != ROOT)]
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not soak and not gpu", *tests])
    os._exit(int(code))


def report(found: dict[Mutant, bool], how: str) -> tuple[str, float]:
    """The table of results as text, and the percentage of unexplained faults that were noticed."""
    reasons = {
        (one["module"], one["function"], one["mutant"]): one["why"]
        for one in tomllib.loads((HERE / "tolerated.toml").read_text())["tolerated"]
    }
    rows, lists = [], []
    for room in [*ROOMS, None]:
        of_room = [m for m in found if room in (m.room, None)]
        killed = sum(found[m] for m in of_room)
        explained = sum(m.key in reasons for m in of_room if not found[m])
        percent = 100 * killed / max(1, len(of_room) - explained)
        name = room.module if room else "**all**"
        rows.append(f"| {name} | {len(of_room)} | {killed} | {explained} | {percent:.0f} |")
    for m, killed in found.items():
        if not killed:
            why = reasons.get(m.key, "**not explained**")
            where = f"`{m.room.module}:{m.line}` {m.key[1]}, {m.operator}: `{m.key[2]}`"
            lists.append(f"- {where}  \n  {why}")
    head = "| module | mutants | killed | explained | % of the others |\n|---|---|---|---|---|\n"
    parts = f"# Mutants\n\n`make mutants`, {how}.", head + "\n".join(rows), "## Survivors"
    return "\n\n".join([*parts, "\n".join(lists)]) + "\n", percent


if __name__ == "__main__":
    sys.exit(main())
