"""Many pairs in one shard take the memory of few."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs.export.outputs import make_pairs, store

PROGRAM = """
import resource, sys
from jobs.export import export
from jobs.export.formats import Settings
from pipeline.storage import Folder
done = export(sys.argv[1], sys.argv[2], Settings(sys.argv[3]))
print(done.pairs, done.bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def measured(output: str, to: Path, format: str) -> tuple[int, int, int]:
    """Pairs and bytes that were written, and the most memory of the process in bytes."""
    command = [sys.executable, "-c", PROGRAM, output, str(to), format]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
    pairs, size, memory = map(int, ran.stdout.split())
    return pairs, size, memory


@pytest.mark.soak
@pytest.mark.parametrize("format", ["webdataset", "huggingface", "lance", "csv"])
def test_ten_thousand_pairs_are_streamed(tmp_path: Path, format: str) -> None:
    few, many = str(tmp_path / "few"), str(tmp_path / "many")
    store(few, make_pairs(few, 20, 10, bytes_each=20_000))
    store(many, make_pairs(many, 1000, 10, bytes_each=20_000))
    pairs, _, little = measured(few, tmp_path / "a", format)
    assert pairs == 200
    pairs, size, much = measured(many, tmp_path / "b", format)
    assert pairs == 10_000
    assert size > 200e6
    assert much - little < 90e6, f"{much / 1e6:.0f} MB, and {little / 1e6:.0f} MB for 200 pairs"
