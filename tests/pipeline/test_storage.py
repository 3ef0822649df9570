"""The seam to storage: the same behaviour on a file system and in an object store."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec import AbstractFileSystem
from s3fs import S3FileSystem

from pipeline.errors import ErrorCode, RowError, StorageFailed
from pipeline.storage import Folder, explain, local_copy
from tests.fault_proxy import Fault, faulty
from tests.s3_server import s3_server


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


def trouble(uri: str) -> tuple[ErrorCode, str]:
    with pytest.raises(RowError) as caught, local_copy(uri):
        pass
    assert caught.value.message.startswith(f"{uri}: ")
    return caught.value.code, caught.value.message.removeprefix(f"{uri}: ")


@pytest.mark.parametrize(
    ("uri", "code", "text"),
    [
        ("memory://nothing/clip.mp4", ErrorCode.VIDEO_NOT_FOUND, "there is no such file"),
        ("/no/such/clip.mp4", ErrorCode.VIDEO_NOT_FOUND, "there is no such file"),
        ("nosuchscheme://clip.mp4", ErrorCode.BAD_URI, "unknown protocol 'nosuchscheme'"),
        ("s3:/bucket/a.mp4", ErrorCode.BAD_URI, "expected s3://bucket/a.mp4"),
        ("zip://a.mp4", ErrorCode.BAD_URI, "expected zip://a.mp4::LOCATION"),
        ("zip://a.mp4::/no/c.zip", ErrorCode.VIDEO_NOT_FOUND, "no such file: /no/c.zip"),
        ("simplecache::/no/a.mp4", ErrorCode.VIDEO_NOT_FOUND, "no such file: /no/a.mp4"),
        ("file://host/a.mp4", ErrorCode.BAD_URI, "names the host 'host'"),
        ("C:\\clips\\a.mp4", ErrorCode.VIDEO_NOT_FOUND, "a path of Windows"),
        ("/no/a.mp4 ", ErrorCode.VIDEO_NOT_FOUND, "begins or ends with a space"),
        ("http:///a.mp4", ErrorCode.BAD_URI, "no valid address"),
        ("github://x/y", ErrorCode.BAD_URI, "cannot be opened"),
    ],
)
def test_a_location_that_cannot_be_opened_fails_with_its_reason(
    uri: str, code: ErrorCode, text: str
) -> None:
    found, message = trouble(uri)
    assert found == code
    assert text in message


@pytest.mark.skipif(find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_a_protocol_that_needs_a_package_names_the_extra() -> None:
    code, text = trouble("gs://bucket/a.mp4")
    assert code == ErrorCode.BAD_URI
    assert "pip install 'retake[gcs]'" in text


@pytest.mark.parametrize(
    "name", ["a b", "50%", "a%20b", "a#1", "what?", "a::b", "[1]*", "x:y", "~a"]
)
def test_a_local_name_may_have_any_character(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(name)
    for uri in (f"{tmp_path}/{name}", f"file://{tmp_path}/{name}", f"{tmp_path}/{name}/"):
        with local_copy(uri) as (file, _):
            assert file.read() == name.encode()
    with local_copy((tmp_path / name).as_uri()) as (file, _):  # with its characters escaped
        assert file.read() == name.encode()


def test_a_path_with_escapes_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "a b.mp4").touch()
    assert f"there is {tmp_path}/a b.mp4" in trouble(f"{tmp_path}/a%20b.mp4")[1]


def test_a_file_of_this_host_is_a_local_one(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("x")
    for uri in (f"file://localhost{tmp_path}/a.mp4", f"file:{tmp_path}/a.mp4"):
        with local_copy(uri) as (file, _):
            assert file.read() == b"x"


def test_a_file_in_an_archive_is_read_or_said_to_be_missing_there(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("x")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.write(tmp_path / "a.mp4", "d/a.mp4")
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        tar.add(tmp_path / "a.mp4", "d/a.mp4")
    for kind in ("zip", "tar"):
        chain = f"{kind}://d/a.mp4::simplecache::file://{tmp_path}/c.{kind}"
        for uri in (chain, f"{kind}://d/a.mp4::{tmp_path}/c.{kind}"):
            with local_copy(uri) as (file, _):
                assert file.read() == b"x"
        code, text = trouble(f"{kind}://no.mp4::{tmp_path}/c.{kind}")
        assert (code, text) == (
            ErrorCode.VIDEO_NOT_FOUND,
            f"there is no such file in {tmp_path}/c.{kind}",
        )
        code, text = trouble(f"{kind}://a.mp4::{tmp_path}/a.mp4")
        assert code == ErrorCode.VIDEO_UNREADABLE
        assert f"{tmp_path}/a.mp4 is no such archive" in text


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.mp4").write_text("x")
    with local_copy("~/a.mp4") as (file, _):
        assert file.read() == b"x"
    Folder("~/out").write("b", b"y")
    assert (tmp_path / "out/b").read_bytes() == b"y"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_no_missing_one(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch(mode=0)
    code, text = trouble(f"{tmp_path}/a.mp4")
    assert code == ErrorCode.STORAGE_DENIED
    assert "may not be read" in text


class _Answers(BaseHTTPRequestHandler):
    """Answers with the status that is the path, or with a page, or with a file."""

    def do_GET(self) -> None:
        name = self.path.strip("/")
        body = b"<!DOCTYPE html><html>" if name == "page" else b"video"
        self.send_response(int(name) if name.isdigit() else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_each_failure_of_a_web_server_has_its_own_reason(web: str) -> None:
    with local_copy(f"{web}/file?token=/a") as (file, _):
        assert file.read() == b"video"
    for name, code, expected in [
        ("404", ErrorCode.VIDEO_NOT_FOUND, "there is no such file"),
        ("410", ErrorCode.VIDEO_NOT_FOUND, "there is no such file"),
        ("401", ErrorCode.STORAGE_DENIED, "may not be read (HTTP 401); check the credentials"),
        ("403", ErrorCode.STORAGE_DENIED, "may not be read (HTTP 403); check the credentials"),
        ("500", ErrorCode.STORAGE_BUSY, "the server answered HTTP 500"),
        ("page", ErrorCode.VIDEO_UNREADABLE, "is a web page"),
    ]:
        found, text = trouble(f"{web}/{name}")
        assert found == code
        assert expected in text


def test_a_host_that_cannot_be_reached_is_named(web: str) -> None:
    with socket.socket() as free:  # bound, and nothing listens
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
        for uri in (f"http://{host}/a.mp4", f"zip://a.mp4::http://{host}/c.zip"):
            code, text = trouble(uri)
            assert code == ErrorCode.STORAGE_UNREACHABLE
            assert f"{host} cannot be reached" in text
    code, text = trouble("http://no-such-host.invalid/a.mp4")
    assert code == ErrorCode.STORAGE_UNREACHABLE
    assert "no-such-host.invalid cannot be reached" in text


@pytest.mark.s3
def test_each_failure_of_s3_has_its_own_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        fs = S3FileSystem(version_aware=True)
        fs.mkdir("clips")
        fs.call_s3(
            "put_bucket_versioning",
            Bucket="clips",
            VersioningConfiguration={"Status": "Enabled"},
        )
        fs.pipe("clips/d/a.mp4", b"first")
        version = fs.info("clips/d/a.mp4")["VersionId"]
        fs.pipe("clips/d/a.mp4", b"second")
        old = f"s3://clips/d/a.mp4?versionId={version}"
        for uri, content in [
            ("s3://clips/d/a.mp4", b"second"),
            ("s3://clips/d/a.mp4/", b"second"),
            (old, b"first"),
            (f"simplecache::{old}", b"first"),
        ]:
            with local_copy(uri) as (file, _):
                assert file.read() == content
        for uri, expected in [
            ("s3://clips/d/b.mp4", "there is no such file"),
            ("s3://clips/d", "is a folder; expected a file: name one in it"),
            ("s3://clips/d/", "is a folder; expected a file: name one in it"),
            ("s3://clips", "is a folder; expected a file: name one in it"),
            ("s3://no-such-bucket/a.mp4", "there is no bucket 'no-such-bucket'"),
        ]:
            assert trouble(uri) == (ErrorCode.VIDEO_NOT_FOUND, expected)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        S3FileSystem.clear_instance_cache()
        code, text = trouble("s3://clips/d/a.mp4")
        assert code == ErrorCode.STORAGE_DENIED
        assert "may not be read: no credentials" in text
    S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (PermissionError("Access"), ErrorCode.STORAGE_DENIED, "may not be read (Access)"),
        (TimeoutError(), ErrorCode.STORAGE_BUSY, "gives no answer in time: TimeoutError"),
        (OSError("disk"), ErrorCode.STORAGE, "cannot be read: OSError: disk"),
    ],
)
def test_an_exception_is_explained(error: Exception, code: ErrorCode, expected: str) -> None:
    found = explain(error, "s3://b/a.mp4")
    assert found.code == code
    assert expected in found.text
    assert "be read" not in explain(error, "s3://b/a.mp4", "written").text


def test_a_folder_in_the_place_of_a_video_is_no_video(tmp_path: Path) -> None:
    assert trouble(str(tmp_path)) == (
        ErrorCode.VIDEO_NOT_FOUND,
        "is a folder; expected a file: name one in it",
    )


def test_a_failure_of_any_storage_is_one_of_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentials(Exception):
        pass

    def refuse(*_: object, **__: object) -> None:
        raise NoCredentials("no keys")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(RowError, match="NoCredentials: no keys") as caught, local_copy("s3://b/c"):
        pass
    assert caught.value.code == ErrorCode.STORAGE


def test_sizes_are_those_of_all_files_below(folder: Folder) -> None:
    folder.write("a/1", b"123")
    folder.write("a/deep/2", b"")
    folder.write("b", b"1")
    assert sorted(folder.sizes("a")) == [("a/1", 3), ("a/deep/2", 0)]
    assert sorted(folder.sizes()) == [("a/1", 3), ("a/deep/2", 0), ("b", 1)]
    assert list(folder.sizes("nothing")) == []


def test_links_lead_out_of_no_folder(tmp_path: Path) -> None:
    folder, outside = Folder(str(tmp_path / "out")), tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x")
    folder.write("trajectories/k/shard", b"1")
    (tmp_path / "out/trajectories/k/link").symlink_to(outside)
    (tmp_path / "out/trajectories/k/circle").symlink_to(tmp_path / "out")
    (tmp_path / "out/trajectories/linked").symlink_to(outside)
    assert folder.list() == ["trajectories/k/shard"]
    assert list(folder.sizes("trajectories")) == [("trajectories/k/shard", 1)]
    assert folder.list("trajectories/linked") == ["trajectories/linked/precious"]  # named itself
    folder.remove_folder("trajectories/linked")
    folder.remove_folder("trajectories/k")
    assert os.listdir(tmp_path / "out/trajectories") == []
    assert os.listdir(outside) == ["precious"]


class OneByOne(AbstractFileSystem):
    """Looks into one folder after the other, as the file systems of SFTP and HDFS do."""

    protocol = "sftp"
    answers: ClassVar[dict[str, Any]] = {}

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        answer = self.answers[path]
        if isinstance(answer, list):
            return [{"name": n, "size": 1, "type": t} for n, t in answer]
        raise answer


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty_on_any_storage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    above = [("/out/a", "directory"), ("/out/b", "directory"), ("/out/c", "file")]
    answers = {"/out": above, "/out/a": FileNotFoundError(), "/out/b": OSError("Failure")}
    monkeypatch.setattr(OneByOne, "answers", answers)
    folder = Folder("sftp://host/out")
    folder.__dict__["_fs_and_root"] = OneByOne(), "/out"
    for listed in (folder.list, lambda: list(folder.sizes())):
        with pytest.raises(StorageFailed, match="Failure"):
            listed()
    answers["/out/b"] = [("/out/b/1", "file")]
    assert folder.list() == ["b/1", "c"]


@pytest.mark.s3
def test_a_listing_that_fails_for_a_moment_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RETAKE_STORAGE_PATIENCE_S", "20")
    with s3_server() as server, faulty(server) as (proxy, access):
        for name, value in access.items():
            monkeypatch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("bucket")
        folder = Folder("s3://bucket/out")
        folder.write("edits/v/e.mp4", b"12345")
        count = len(proxy.seen)
        proxy.next(Fault.RESET, Fault.RESET, Fault.RESET, method="GET")
        assert list(folder.sizes("edits")) == [("edits/v/e.mp4", 5)]
        assert [fault for _, fault in proxy.seen[count:]].count("reset") == 3


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
@pytest.mark.parametrize("doing", ["read", "written"])
def test_memory_that_ran_out_is_no_fault_of_the_storage(error: Exception, doing: str) -> None:
    trouble = explain(error, "s3://bucket/a.mp4", doing)
    assert (trouble.code, trouble.temporary) == ("out_of_memory", False)
    assert trouble.text.startswith(f"cannot be {doing}: this machine has no memory left")
