"""The seam to storage: the same behaviour on a file system and in an object store."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from pipeline.errors import ErrorCode, RowError
from pipeline.storage import Folder, local_copy


@pytest.fixture(params=["path", "file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    root = {
        "path": f"{tmp_path}/output",
        "file": f"file://{tmp_path}/output",
        "memory": f"memory://{tmp_path.name}/output",
    }[request.param]
    yield Folder(root)
    fsspec.filesystem("memory").store.clear()


def test_what_is_written_is_read_whole_and_in_parts(folder: Folder) -> None:
    folder.write("a/b/file.bin", b"0123456789")
    assert folder.read("a/b/file.bin") == b"0123456789"
    assert folder.read_range("a/b/file.bin", 3, 6) == b"345"
    assert folder.size("a/b/file.bin") == 10
    with folder.open("a/b/file.bin") as file:
        assert file.read(4) == b"0123"


def test_a_second_write_replaces_the_first(folder: Folder) -> None:
    folder.write("file", b"first, and longer")
    folder.write("file", b"second")
    assert folder.read("file") == b"second"
    assert folder.list() == ["file"]


def test_files_are_listed_in_order_with_their_folders(folder: Folder) -> None:
    assert folder.list() == []
    for name in ("b.json", "a/2", "a/1", "a/deep/er/3"):
        folder.write(name, b"")
    assert folder.list() == ["a/1", "a/2", "a/deep/er/3", "b.json"]
    assert folder.list("a") == ["a/1", "a/2", "a/deep/er/3"]
    assert folder.list("nothing") == []
    assert folder.child("a").list() == ["1", "2", "deep/er/3"]


def test_a_child_is_the_folder_below(folder: Folder) -> None:
    folder.child("a/b").write("c", b"x")
    assert folder.read("a/b/c") == b"x"
    assert Folder(folder.uri + "/").child("a").read("b/c") == b"x"


def test_what_is_not_there_is_said_to_be_missing(folder: Folder) -> None:
    assert not folder.exists("file")
    for read in (folder.read, folder.size, folder.open, lambda n: folder.read_range(n, 0, 1)):
        with pytest.raises(FileNotFoundError):
            read("file")
    folder.write("file", b"")
    assert folder.exists("file")


def test_removing_twice_is_no_error(folder: Folder) -> None:
    folder.write("a/1", b"")
    folder.write("a/2", b"")
    folder.write("b", b"")
    for _ in range(2):
        folder.remove("a/1")
        assert folder.list() == ["a/2", "b"]
    for _ in range(2):
        folder.remove_folder("a")
        assert folder.list() == ["b"]


def test_a_file_is_opened_by_its_full_uri(folder: Folder) -> None:
    folder.write("a.txt", b"found")
    uri = folder.full_uri("a.txt")
    assert "://" in uri or os.path.isabs(uri)
    with fsspec.open(uri) as file:
        assert file.read() == b"found"


def test_a_folder_travels_between_processes(folder: Folder) -> None:
    folder.write("a", b"x")
    assert pickle.loads(pickle.dumps(folder)) == folder
    assert Folder(pickle.loads(pickle.dumps(folder)).uri).read("a") == b"x"


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    folder.write("file", b"whole")

    def full(_: int) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            folder.write("file", b"half")
    assert folder.read("file") == b"whole"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_that_is_being_written_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".file.bin.1a2b3c4d").write_bytes(b"half")
    assert Folder(str(tmp_path)).list() == []


def test_a_local_copy_can_be_sought_in_and_names_its_bytes(folder: Folder) -> None:
    folder.write("clip.mp4", b"0123456789")
    with local_copy(folder.full_uri("clip.mp4")) as (file, sha):
        file.seek(7)
        assert file.read() == b"789"
    assert sha == hashlib.sha256(b"0123456789").hexdigest()


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("memory://nothing/clip.mp4", ErrorCode.VIDEO_NOT_FOUND),
        ("/no/such/clip.mp4", ErrorCode.VIDEO_NOT_FOUND),
        ("nosuchscheme://clip.mp4", ErrorCode.BAD_URI),
    ],
)
def test_a_video_that_cannot_be_opened_fails_with_its_code(uri: str, code: ErrorCode) -> None:
    with pytest.raises(RowError, match=uri) as caught, local_copy(uri):
        pass
    assert caught.value.code == code


def test_a_folder_in_the_place_of_a_video_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(RowError) as caught, local_copy(str(tmp_path)):
        pass
    assert caught.value.code == ErrorCode.VIDEO_NOT_FOUND


def test_a_failure_of_any_storage_is_one_of_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentials(Exception):
        pass

    def refuse(*_: object) -> None:
        raise NoCredentials("no keys")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(RowError, match="NoCredentials: no keys") as caught, local_copy("s3://b/c"):
        pass
    assert caught.value.code == ErrorCode.STORAGE
