"""A real cluster whose nodes cannot work for the job, each for another reason."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import __version__
from pipeline.storage import Folder
from tests.drawn_videos import draw_sound
from tests.s3_server import s3_server

pytestmark = [pytest.mark.ray, pytest.mark.s3]

ROOT = Path(__file__).parents[3]
HIDING = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in ("pipeline", "cluster", "jobs"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where Ray and the job are started: not in a checkout, whose packages would come first."""
    folder, before = tmp_path_factory.mktemp("preflight"), os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def storage() -> Iterator[dict[str, str]]:
    with s3_server() as access, pytest.MonkeyPatch.context() as patch:
        for name, value in access.items():
            patch.setenv(name, value)
        Folder("s3://made").fs.mkdir("made")
        yield access


@pytest.fixture(scope="module")
def address(folder: Path, storage: dict[str, str]) -> Iterator[str]:
    """The address of a head that is well, and of three nodes with a fault each."""
    from cluster import quiet  # noqa: F401
    from ray.cluster_utils import Cluster  # isort: skip

    (folder / "hiding").mkdir()
    (folder / "hiding/sitecustomize.py").write_text(HIDING)
    for package in ("pipeline", "cluster", "jobs"):
        shutil.copytree(ROOT / package, folder / "other" / package)
    start = folder / "other/pipeline/__init__.py"
    start.write_text(re.sub('__version__ = ".*"', '__version__ = "0.0.9"', start.read_text()))
    faults = [
        {"PYTHONPATH": str(folder / "hiding")},
        {"PYTHONPATH": str(folder / "other")},
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
    ]
    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=2, include_dashboard=False)
        for fault in faults:
            cluster.add_node(num_cpus=2, env_vars=fault)
        yield cluster.address
    finally:
        cluster.shutdown()


def test_what_keeps_each_node_from_working_stands_in_one_message_within_seconds(
    folder: Path, address: str
) -> None:
    (folder / "horse.mp4").write_bytes(draw_sound())
    row = {"video": "horse.mp4", "edits": [{"prompt": "a red ring"}]}
    pq.write_table(pa.Table.from_pylist([row]), folder / "m.parquet")
    job = folder / "job.yaml"
    job.write_text("manifest: m.parquet\noutput: s3://made/here\ncheckpoint: embedded\n")
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "run", str(job)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "RAY_ADDRESS": address},
    )
    took = time.monotonic() - started
    print(f"{done.stderr}in {took:.1f} s")
    assert done.returncode == 1, done.stdout
    first, *lines = done.stderr.strip().splitlines()
    assert first == "error: the job cannot run on 3 of 4 nodes of the cluster; nothing was started:"
    texts = sorted(re.sub(r"^  \S+ \([0-9.]+, node [0-9a-f]{8}\): ", "", line) for line in lines)
    output, version, package = texts
    assert output == (
        "output s3://made/here: the storage cannot be reached: Could not connect to the endpoint "
        'URL: "http://127.0.0.1:1/made/here"; check its name and this machine\'s network (read on '
        "the node)"
    )
    assert version == (
        f"retake 0.0.9 is installed there, in {folder}/other; this machine has {__version__}. "
        f"Install retake {__version__} there, or the node's version here"
    )
    assert package == (
        f"the package retake cannot be imported there ({sys.executable}): ModuleNotFoundError: No "
        f"module named 'pipeline'. Install retake {__version__} there, or send the job with "
        "`retake submit`, which takes it along"
    )
    assert took < 60
    made = Folder("s3://made/here")
    left = [*made.list(), *made.list(scratch=True)]
    left = [name for name in left if not name.startswith("logs/")]
    known = ["job.yaml", "lease/000001.json", "status.json"]
    assert sorted(left) == known, "files of the check are left"
