"""An export from object storage into object storage."""

from pathlib import Path

import fsspec
import pytest

from jobs.cli import EXIT_DONE
from pipeline.storage import Folder
from tests.jobs.export.outputs import export, files_of, make_pairs, store
from tests.s3_server import s3_server

pytestmark = pytest.mark.s3


@pytest.mark.parametrize(
    "format",
    [
        "webdataset",
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("huggingface", "csv")),
    ],
)
def test_an_export_to_s3_is_the_same_as_a_local_one_and_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    options = ("--shard-mb", "0.001", "--validation", "0")
    with s3_server() as access:
        for name, value in access.items():
            monkeypatch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("bucket")
        output = "s3://bucket/out"
        rows = make_pairs(output, 4, 2)
        store(output, rows)
        to, here = f"s3://bucket/{format}", tmp_path / format
        assert export(output, to, *options, format=format).exit_code == EXIT_DONE
        export(output, here, *options, format=format)
        assert files_of(to) == files_of(here)
        last = sorted(n for n in files_of(to) if n.startswith(".export/shards/"))[-1]
        Folder(to).remove(last)  # as if it was killed before its last commit
        assert export(output, to, *options, format=format).exit_code == EXIT_DONE
        assert files_of(to) == files_of(here)


@pytest.mark.soak
def test_a_lance_export_to_s3_is_gone_on_with_and_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lance = pytest.importorskip("lance")

    options = ("--shard-mb", "0.001", "--validation", "0")
    with s3_server() as access:
        for name, value in access.items():
            monkeypatch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("bucket")
        output = str(tmp_path / "out")
        store(output, make_pairs(output, 4, 2))
        to = "s3://bucket/lance"
        assert export(output, to, *options, format="lance").exit_code == EXIT_DONE
        store(output, make_pairs(output, 1, first=4), "run-2")
        assert export(output, to, *options, format="lance").exit_code == EXIT_DONE
        for name, data in files_of(to).items():
            Folder(str(tmp_path / "copy")).write(name, data)
        keys = lance.dataset(str(tmp_path / "copy")).to_table(columns=["key"])["key"].to_pylist()
        assert len(keys) == len(set(keys)) == 9
