"""Single files at a path or URI: taken apart, found, read and written."""

import uuid
import zipfile
from pathlib import Path

import pytest

from pipeline.storage import (
    Folder,
    is_folder,
    join,
    matching_files,
    open_file,
    split,
    unknown_protocol,
    write_file,
)


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory:///{uuid.uuid4().hex}"


def test_a_written_file_is_read_back_from_anywhere_in_it(folder: str) -> None:
    write_file(f"{folder}/new/a.bin", b"0123456789")
    with open_file(f"{folder}/new/a.bin") as file:
        file.seek(4)
        assert file.read(2) == b"45"
    assert is_folder(f"{folder}/new")
    assert not is_folder(f"{folder}/new/a.bin")


def test_a_uri_that_was_taken_apart_is_put_together_again(folder: str) -> None:
    assert join(*split(f"{folder}/a/b.bin")) == f"{folder}/a/b.bin"
    assert join(*split(f"{folder}/a/")) == f"{folder}/a"


def test_a_pattern_names_its_files_in_order_and_a_file_of_that_name_itself(folder: str) -> None:
    for name in ("b1.csv", "a1.csv", "odd[1].csv"):
        write_file(f"{folder}/{name}", b"x")
    assert matching_files(f"{folder}/?1.csv") == [f"{folder}/a1.csv", f"{folder}/b1.csv"]
    assert matching_files(f"{folder}/odd[1].csv") == [f"{folder}/odd[1].csv"]
    assert matching_files(f"{folder}/none.csv") == [f"{folder}/none.csv"]
    assert matching_files(f"{folder}/none*.csv") == []


@pytest.mark.parametrize(
    ("uri", "unknown"),
    [("a.mp4", None), ("s3://b/a", None), ("simplecache::s4://b/a", "s4"), ("S3://b/a", "S3")],
)
def test_the_protocol_that_nothing_opens_is_found(uri: str, unknown: str | None) -> None:
    assert unknown_protocol(uri) == unknown


def test_a_file_of_a_chain_of_file_systems_keeps_its_uri(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "table.zip", "w") as archive:
        archive.writestr("table.csv", "video,prompt")
    uri = f"zip://table.csv::{tmp_path}/table.zip"
    assert matching_files(uri) == [uri]
    with open_file(uri) as file:
        assert file.read() == b"video,prompt"


def test_a_file_directly_below_the_root_is_written_there(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, str]] = []
    monkeypatch.setattr(Folder, "write", lambda self, name, data: written.append((self.uri, name)))
    write_file("/manifest.parquet", b"")
    assert written == [("/", "manifest.parquet")]
