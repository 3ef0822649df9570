"""What the tests share: an option for other parity cases, and small checkpoints of each family."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported, and for the processes that tests start: on models as small as these one
# thread is fastest, and OpenMP's threads spin for each other's cores when there are more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ray starts a worker for each CPU slot with the first driver; tests need few of them.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
# A storage that fails is tried once: tests of patience say how long.
os.environ.setdefault("RETAKE_STORAGE_PATIENCE_S", "0")

from tests.small_models import FAMILIES, write_checkpoint

# No deadline: a shared machine may stop for longer than any. Derandomised: a run can be repeated.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        metavar="DIR",
        type=Path,
        default=GOLDEN,
        help="a parity case (a folder with case.json) or a folder of them; default: tests/golden",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_case" in metafunc.fixturenames:
        folder: Path = metafunc.config.getoption("--golden")
        cases = sorted(path.parent for path in folder.glob("**/case.json"))
        if not cases:
            raise pytest.UsageError(f"--golden {folder}: there is no case.json in it or below it")
        names = [case.name for case in cases]
        metafunc.parametrize("golden_case", cases, ids=names, scope="module")


HANGS_AFTER_S = 600.0
"""pytest-timeout ends a test by a signal after 300 s. Native code that never returns to Python does
not see it, nor does what tidies up after the test."""


REAL_STDERR = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REAL_STDERR] = os.dup(2)  # tests have it captured


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A process whose test hangs all the same says where, and ends; the others go on."""
    where = item.config.stash[REAL_STDERR]
    faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True, file=where)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def patience_of_a_command() -> Iterator[None]:
    """A rank waits longer for storage, and reports it; a test may be a rank in this process."""
    from pipeline.storage import patience

    names = ("_patience_s", "_waits_for_room", "_on_wait")
    before = {name: getattr(patience, name) for name in names}
    yield
    for name, value in before.items():
        setattr(patience, name, value)


LONGEST = (
    "test_run.py",
    "test_faults.py",
    "test_submit.py",
    "test_two_runs.py",
    "test_skypilot.py",
    "test_stopping.py",
    "test_commands.py",
    "test_poison.py",
    "test_watching.py",
    "test_editing.py",
    "test_packing.py",
    "test_real_sizes.py",
)
"""The files that take half a minute or more, the longest first."""
SLOW_MARKS = ("ray", "distributed", "browser", "s3")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then those with slow tests: where several processes share the files,
    none is left alone with a long one at the end."""
    slow = {item.path for item in items if any(map(item.get_closest_marker, SLOW_MARKS))}
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (order.get(item.path.name, len(order)), item.path not in slow))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint folder of each family, by its name. Do not write into them."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: write_checkpoint(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="session", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Path:
    """Each family's small checkpoint folder in turn."""
    return checkpoints[request.param]
