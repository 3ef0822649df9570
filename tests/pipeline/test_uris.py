"""Single files at a path or URI: taken apart, found, read and written."""

import uuid
import zipfile
from pathlib import Path

import pytest

from pipeline.locations import (
    absolute,
    before_pattern,
    expanded,
    links,
    parent,
    resolve_uri,
    unknown_protocol,
)
from pipeline.storage import (
    Folder,
    is_folder,
    join,
    neighbour,
    open_file,
    split,
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


@pytest.mark.parametrize(
    ("uri", "unknown"),
    [("a.mp4", None), ("s3://b/a", None), ("simplecache::s4://b/a", "s4"), ("S3://b/a", "S3")],
)
def test_the_protocol_that_nothing_opens_is_found(uri: str, unknown: str | None) -> None:
    assert unknown_protocol(uri) == unknown


def test_a_file_of_a_chain_of_file_systems_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "table.zip", "w") as archive:
        archive.writestr("table.csv", "video,prompt")
    uri = f"zip://table.csv::{tmp_path}/table.zip"
    with open_file(uri) as file:
        assert file.read() == b"video,prompt"


def test_a_file_directly_below_the_root_is_written_there(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, str]] = []
    monkeypatch.setattr(Folder, "write", lambda self, name, data: written.append((self.uri, name)))
    write_file("/manifest.parquet", b"")
    assert written == [("/", "manifest.parquet")]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("a.mp4", ["a.mp4"]),
        ("/d/a::b.mp4", ["/d/a::b.mp4"]),
        ("clip::1.mp4", ["clip::1.mp4"]),
        ("s3://b/a::b.mp4", ["s3://b/a::b.mp4"]),
        ("simplecache::s3://b/a", ["simplecache", "s3://b/a"]),
        ("zip://a.mp4::simplecache::s3://b/c", ["zip://a.mp4", "simplecache", "s3://b/c"]),
        ("zip://a.mp4::/d/c.zip", ["zip://a.mp4", "/d/c.zip"]),
        ("simplecache::/d/a.mp4", ["simplecache", "/d/a.mp4"]),
    ],
)
def test_a_chain_has_links_and_a_name_with_colons_is_one(uri: str, expected: list[str]) -> None:
    assert links(uri) == expected


@pytest.mark.parametrize(
    ("uri", "base", "expected"),
    [
        ("clips/a.mp4", "/data", "/data/clips/a.mp4"),
        ("../a.mp4", "/data/link", "/data/link/../a.mp4"),
        ("clips/a.mp4", None, "clips/a.mp4"),
        ("/abs/a.mp4", "s3://b/m", "/abs/a.mp4"),
        ("~/a.mp4", "s3://b/m", "~/a.mp4"),
        ("~a.mp4", "/data", "/data/~a.mp4"),
        ("file:/d/a.mp4", "/data", "file:/d/a.mp4"),
        ("https://h/a.mp4", "/data", "https://h/a.mp4"),
        ("clips/a.mp4", "s3://b/m", "s3://b/m/clips/a.mp4"),
        ("clips/a.mp4", "s3://b", "s3://b/clips/a.mp4"),
        ("../clips/a.mp4", "s3://b/m/", "s3://b/clips/a.mp4"),
        ("../../clips/a.mp4", "s3://b/m", "s3://b/clips/a.mp4"),
        ("s3://b/x/../a.mp4", "/data", "s3://b/a.mp4"),
        ("a.mp4?versionId=1", "s3://b/m", "s3://b/m/a.mp4?versionId=1"),
        ("a.mp4", "memory:///m", "memory:///m/a.mp4"),
        ("a.mp4", "zip://::/d/c.zip", "zip://a.mp4::/d/c.zip"),
        ("../a.mp4", "zip://m::/d/c.zip", "zip://a.mp4::/d/c.zip"),
        ("a.mp4", "simplecache::s3://b/m", "simplecache::s3://b/m/a.mp4"),
        ("C:\\a.mp4", "/data", "C:\\a.mp4"),
        ("a::b.mp4", "/data", "/data/a::b.mp4"),
    ],
)
def test_a_relative_video_lies_beside_its_manifest(
    uri: str, base: str | None, expected: str
) -> None:
    assert resolve_uri(uri, base) == expected


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("/d/m.parquet", "/d"),
        ("/m.parquet", "/"),
        ("m.parquet", "."),
        ("s3://b/m.parquet", "s3://b"),
        ("s3://b/d/m.parquet", "s3://b/d"),
        ("https://h/d/m.parquet?signature=a/b", "https://h/d"),
        ("memory:///d/m.parquet", "memory:///d"),
        ("zip://d/m.parquet::/e/c.zip", "zip://d::/e/c.zip"),
        ("zip://m.parquet::/e/c.zip", "zip://::/e/c.zip"),
        ("simplecache::s3://b/d/m.parquet", "simplecache::s3://b/d"),
    ],
)
def test_the_folder_of_a_file_is_found_in_its_uri(uri: str, folder: str) -> None:
    assert parent(uri) == folder


def test_a_pattern_has_a_folder_above_it() -> None:
    assert before_pattern("/d/*.parquet") == "/d"
    assert before_pattern("s3://b/d/*/m-?.parquet") == "s3://b/d"
    assert before_pattern("*.parquet") == "."


def test_a_home_folder_is_replaced_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/a.mp4") == absolute("~/a.mp4") == "/home/me/a.mp4"
    assert expanded("zip://a~/b.mp4::~/c.zip") == "zip://a~/b.mp4::/home/me/c.zip"
    assert expanded("~nobody-has-this-name/a") == "~nobody-has-this-name/a"
    assert expanded("s3://b/~/a") == "s3://b/~/a"


def test_a_relative_path_is_made_absolute_in_a_chain_too() -> None:
    here = str(Path.cwd())
    assert absolute("a/b.mp4") == f"{here}/a/b.mp4"
    assert absolute("simplecache::a.mp4") == f"simplecache::{here}/a.mp4"
    assert absolute("zip://a.mp4::c.zip") == f"zip://a.mp4::{here}/c.zip"
    assert absolute("s3://b/a") == "s3://b/a"


def test_a_neighbour_is_on_the_same_file_system(tmp_path: Path) -> None:
    assert neighbour(f"zip://a::{tmp_path}/c.zip", "b/d") == f"zip://b/d::{tmp_path}/c.zip"
    assert neighbour("simplecache::s3://b/c", "b/d") == "simplecache::s3://b/d"
    assert neighbour(f"{tmp_path}/a", f"{tmp_path}/b") == f"{tmp_path}/b"
    assert neighbour("memory://x/a", "/x/b") == "memory:///x/b"
