"""An export that is killed at any moment, again and again, ends as one that was left alone."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from jobs.export import export
from jobs.export.formats import Settings
from jobs.export.index import read_commits
from pipeline.storage import Folder
from tests.jobs.export.killing import MOMENTS, SHARD_MB
from tests.jobs.export.outputs import files_of, make_pairs, store


@pytest.mark.parametrize(
    ("format", "kills"),
    [
        ("webdataset", 4),
        *(pytest.param(name, 10, marks=pytest.mark.soak) for name in MOMENTS),
    ],
)
def test_a_killed_export_goes_on_without_a_pair_missing_or_twice(
    tmp_path: Path, format: str, kills: int
) -> None:
    if format == "lance":
        pytest.importorskip("lance")
    output = str(tmp_path / "out")
    rows = make_pairs(output, 12, 2)
    store(output, rows)
    command = [sys.executable, "-m", "tests.jobs.export.killing", output, f"{tmp_path}/to", format]
    ran = subprocess.run(
        [*command, "17", str(kills)], check=True, capture_output=True, text=True, timeout=300
    )
    assert int(ran.stdout) >= kills / 2, "most moments come before the end"
    export(output, f"{tmp_path}/whole", Settings(format, validation=0.3, shard_mb=SHARD_MB))
    if format == "lance":  # whose names are drawn at random
        assert rows_of_lance(tmp_path / "to") == rows_of_lance(tmp_path / "whole")
    else:
        assert files_of(tmp_path / "to") == files_of(tmp_path / "whole")
    commits = read_commits(Folder(str(tmp_path / "to")))
    assert len(commits) > 3
    ids = [pair[1:3] for commit in commits for pair in commit.pairs]
    assert sorted(ids) == sorted((row["video_id"], row["edit_id"]) for row in rows)
    if format == "webdataset":
        names = []
        for commit in commits:
            data = Folder(str(tmp_path / "to")).read(f"{commit.name}.tar")
            names += tarfile.open(fileobj=io.BytesIO(data)).getnames()
        assert len(names) == len(set(names)) == 24 * 3 + 12


def rows_of_lance(to: Path) -> list[dict]:
    """The rows of a dataset with the bytes of their edits; every file of it is in use."""
    import lance

    pairs = lance.dataset(str(to))
    used = {file.path for one in pairs.get_fragments() for file in one.data_files()}
    assert {path.name for path in (to / "data").iterdir()} == used
    rows = pairs.to_table(columns=["key", "split", "video_id", "edit_id"]).to_pylist()
    edits = pairs.take_blobs("edit", indices=range(len(rows)))
    return [row | {"edit": one.readall()} for row, one in zip(rows, edits, strict=True)]
