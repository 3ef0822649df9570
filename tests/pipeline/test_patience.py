"""Storage that fails for a while is waited for; what is certain is reported at once."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import re
import resource
import socket
import ssl
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from botocore.exceptions import EndpointConnectionError

from pipeline.errors import ErrorCode, RowError, StorageFailed
from pipeline.storage import (
    Folder,
    explain,
    local_copy,
    open_file,
    patience,
    patiently,
    write_file,
)
from pipeline.storage.systems import write_deadline_s
from pipeline.storage.trouble import is_definite, is_temporary
from tests import fault_proxy
from tests.fault_proxy import DATA, Fault, FaultProxy
from tests.s3_server import ACCESS

SAME = hashlib.sha256(DATA).hexdigest()

pytestmark = pytest.mark.s3


def copied(uri: str) -> str:
    with local_copy(uri) as (file, sha):
        assert hashlib.sha256(file.read()).hexdigest() == sha
    return sha


def opened(uri: str) -> bytes:
    with open_file(uri) as file:
        first = file.read(10)
        file.seek(99_000)
        return first + file.read()


FOLDER = "s3://clips"
OPERATIONS: dict[str, tuple[Callable[[], object], object]] = {
    "read": (lambda: Folder(FOLDER).read("a.mp4"), DATA),
    "a range": (lambda: Folder(FOLDER).read_range("a.mp4", 5, 50_000), DATA[5:50_000]),
    "size": (lambda: Folder(FOLDER).size("a.mp4"), len(DATA)),
    "list": (lambda: "a.mp4" in Folder(FOLDER).list(), True),
    "a missing file": (lambda: Folder(FOLDER).exists("none"), False),
    "write": (lambda: Folder(FOLDER).write("b.mp4", DATA), None),
    "write a file": (lambda: write_file(f"{FOLDER}/b.mp4", DATA), None),
    "remove": (lambda: Folder(FOLDER).remove("b.mp4"), None),
    "a copy": (lambda: copied(f"{FOLDER}/a.mp4"), SAME),
    "an open file": (lambda: opened(f"{FOLDER}/a.mp4"), DATA[:10] + DATA[99_000:]),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_outlasts_each_fault(proxy: FaultProxy, operation: str) -> None:
    act, expected = OPERATIONS[operation]
    # Each of its requests fails in each way before it is answered; only a few wait for a deadline.
    faults = [Fault.STATUS, Fault.RESET, Fault.LOST, Fault.CUT, Fault.CUT_UPLOAD]
    proxy.next(*faults, *[Fault.STALL][: operation in ("read", "write", "a copy")])
    proxy.next(*faults, method="GET")
    proxy.next(Fault.NO_CONTINUE, Fault.UNREAD, method="PUT")
    assert act() == expected
    proxy.heal()
    if "write" in operation:
        assert Folder(FOLDER).read("b.mp4") == DATA
    if operation == "remove":
        assert not Folder(FOLDER).exists("b.mp4")


def test_an_answer_that_stalls_halfway_is_asked_for_again(proxy: FaultProxy) -> None:
    proxy.next(Fault.HALF_STALL, method="GET")
    assert copied(f"{FOLDER}/a.mp4") == SAME


def test_a_write_to_no_bucket_names_it(proxy: FaultProxy) -> None:
    with pytest.raises(StorageFailed, match="there is no bucket 'nowhere'") as caught:
        Folder("s3://nowhere").write("a", b"")
    assert caught.value.trouble.code == ErrorCode.STORAGE
    assert Folder("s3://nowhere").list() == []


def test_a_file_in_an_archive_in_storage_is_waited_for(proxy: FaultProxy) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.mp4", DATA)
    Folder(FOLDER).write("c.zip", packed.getvalue())
    proxy.next(Fault.STATUS, Fault.CUT, Fault.RESET, method="GET")
    assert copied(f"zip://a.mp4::{FOLDER}/c.zip") == SAME


def test_a_slow_answer_is_no_failure(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_proxy, "SLOW_S", 0.05)
    proxy.until_healed(Fault.SLOW, method="GET")
    count = len(proxy.seen)
    assert Folder(FOLDER).read("a.mp4") == DATA
    assert [fault for asked, fault in proxy.seen[count:] if asked.startswith("GET")] == ["slow"]


def test_a_server_that_is_gone_for_a_while_is_waited_for(proxy: FaultProxy) -> None:
    proxy.down()
    threading.Timer(0.3, proxy.up).start()
    assert Folder(FOLDER).read("a.mp4") == DATA


@pytest.mark.parametrize(
    ("fault", "status", "code", "text"),
    [
        (Fault.STATUS, 503, ErrorCode.STORAGE_BUSY, "the server answered HTTP 503"),
        (Fault.STATUS, 429, ErrorCode.STORAGE_BUSY, "the server answered HTTP 429"),
        (Fault.STATUS, 500, ErrorCode.STORAGE_BUSY, "the server answered HTTP 500"),
        (Fault.RESET, 0, ErrorCode.STORAGE_UNREACHABLE, "the storage cannot be reached"),
        (Fault.STALL, 0, ErrorCode.STORAGE_BUSY, "the storage gives no answer in time"),
        (Fault.CUT, 0, ErrorCode.STORAGE_UNREACHABLE, "the storage breaks off before the end"),
    ],
)
def test_patience_ends_with_the_code_of_the_trouble(
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    status: int,
    code: ErrorCode,
    text: str,
) -> None:
    monkeypatch.setenv("RETAKE_STORAGE_PATIENCE_S", "0.2")
    proxy.until_healed(fault, method="GET", status=status)
    with pytest.raises(StorageFailed) as caught:
        Folder(FOLDER).read_range("a.mp4", 0, 90_000)
    assert caught.value.trouble.code == code
    assert caught.value.trouble.temporary
    assert str(caught.value).startswith(f"{FOLDER}/a.mp4: {text}")
    with pytest.raises(RowError) as row, local_copy(f"{FOLDER}/a.mp4"):
        pass
    assert row.value.code == code
    assert row.value.message.startswith(f"{FOLDER}/a.mp4: {text}")


@pytest.mark.parametrize(
    ("status", "code"), [(403, ErrorCode.STORAGE_DENIED), (404, ErrorCode.VIDEO_NOT_FOUND)]
)
def test_what_is_certain_is_asked_once(proxy: FaultProxy, status: int, code: ErrorCode) -> None:
    proxy.until_healed(Fault.STATUS, status=status, method="HEAD")
    count = len(proxy.seen)
    with pytest.raises(RowError) as caught, local_copy(f"{FOLDER}/x.mp4"):
        pass
    assert caught.value.code == code
    assert sum(asked.startswith("HEAD") for asked, _ in proxy.seen[count:]) == 1


def test_a_rank_hears_that_it_waits(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(patience, "_on_wait", heard.append)
    proxy.next(Fault.STATUS, Fault.STATUS)
    assert Folder(FOLDER).read_range("a.mp4", 0, 3) == DATA[:3]
    assert len(heard) == 2
    assert heard[0].startswith(f"the wait for {FOLDER}/a.mp4, which could not be read: ")


def test_a_rank_is_more_patient_than_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RETAKE_STORAGE_PATIENCE_S", raising=False)
    monkeypatch.setattr(patience, "_patience_s", patience.PATIENCE_S)
    monkeypatch.setattr(patience, "_on_wait", patience._on_wait)
    assert patience.patience_s() == 15
    patience.wait_long(lambda _: None)
    assert patience.patience_s() == 120


@pytest.fixture
def web(tmp_path: Path) -> Iterator[FaultProxy]:
    """A web server with the file `a.mp4`, which gives no parts of it."""
    (tmp_path / "a.mp4").write_bytes(DATA)
    handler = partial(_Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        proxy = FaultProxy(f"127.0.0.1:{server.server_port}")
        yield proxy
        proxy.heal()
        proxy.down()
        server.shutdown()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_a_video_of_a_web_server_is_copied_again_from_its_start(
    web: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETAKE_STORAGE_TIMEOUT_S", "0.3")
    monkeypatch.setenv("RETAKE_STORAGE_PATIENCE_S", "20")
    monkeypatch.setattr(patience, "PAUSES_S", (0.01, 0.05))
    faults = (Fault.STATUS, Fault.RESET, Fault.CUT, Fault.HALF_STALL, Fault.STALL)
    web.next(*faults, method="GET")
    assert copied(f"{web.url}/a.mp4") == SAME


def test_a_web_server_that_is_down_has_not_lost_the_video(
    web: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.down()
    with pytest.raises(StorageFailed, match="cannot be reached"):
        Folder(web.url).exists("a.mp4")
    with pytest.raises(StorageFailed, match="cannot be reached"):
        Folder(web.url).read("a.mp4")


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


def of_aiohttp(kind: type[Any], error: OSError) -> BaseException:
    return raised(kind(ConnectionKey("h", 443, True, True, None, None, None), error), error)


@pytest.mark.parametrize(
    ("error", "temporary", "text"),
    [
        (socket.gaierror(socket.EAI_NONAME, "not known"), False, "no server has its name"),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), True, "cannot be reached"),
        (ssl.SSLCertVerificationError("self-signed"), False, "cannot be trusted: "),
        (ssl.SSLError(1, "WRONG_VERSION_NUMBER"), True, "cannot be reached"),
    ],
)
def test_an_address_that_no_try_can_repair_is_tried_once(
    error: OSError, temporary: bool, text: str
) -> None:
    untrusted = isinstance(error, ssl.SSLCertVerificationError)
    kind: type[Any] = aiohttp.ClientConnectorDNSError
    if isinstance(error, ssl.SSLError):
        kind = aiohttp.ClientConnectorCertificateError if untrusted else aiohttp.ClientSSLError
    of_client = of_aiohttp(kind, error)
    of_s3 = raised(EndpointConnectionError(endpoint_url="https://h", error=of_client), of_client)
    of_fsspec = raised(FileNotFoundError("https://h/a.mp4"), of_client)
    for one in (of_client, of_s3, of_fsspec):
        found = explain(one, "https://user:word@h/a.mp4")
        assert (found.code, found.temporary) == (ErrorCode.STORAGE_UNREACHABLE, temporary)
        assert is_temporary(one) == temporary
        assert found.text.startswith("h ")
        assert text in found.text
    assert not is_definite(of_fsspec), "nobody knows whether the file is there"


@pytest.mark.parametrize("uri", ["https://nowhere.invalid/a.mp4", "s3://bucket/a.mp4"])
def test_a_host_that_does_not_exist_is_asked_for_once(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**ACCESS, "AWS_ENDPOINT_URL": "https://nowhere.invalid"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RETAKE_STORAGE_PATIENCE_S", "600")
    asked: list[str] = []

    def resolve(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)  # no network answers a test
    folder, _, name = uri.rpartition("/")
    with pytest.raises(StorageFailed, match="no server has its name") as caught:
        Folder(folder).exists(name)
    assert not caught.value.trouble.temporary
    assert 1 <= len(asked) <= 2  # S3's client has a try of its own


@pytest.mark.parametrize(
    ("number", "code", "temporary", "text"),
    [
        (errno.ENOSPC, ErrorCode.DISK_FULL, False, "no space is left in /data/out: free some"),
        (errno.EDQUOT, ErrorCode.DISK_FULL, False, "your quota of /data/out is used up"),
        (errno.EFBIG, ErrorCode.DISK_FULL, False, "File too large in /data/out"),
        (errno.EROFS, ErrorCode.STORAGE_DENIED, False, "mounted read-only"),
        (errno.EACCES, ErrorCode.STORAGE_DENIED, False, "may not be written"),
        (errno.EMFILE, ErrorCode.STORAGE, True, "too many files are open; raise the limit"),
        (errno.ENAMETOOLONG, ErrorCode.STORAGE, False, "has a name that is longer than"),
        (errno.ESTALE, ErrorCode.STORAGE, True, "Stale file handle; check the disk"),
        (errno.EIO, ErrorCode.STORAGE, True, "Input/output error; check the disk"),
        (errno.ENOTCONN, ErrorCode.STORAGE_UNREACHABLE, True, "check that its file system is"),
    ],
)
def test_an_error_of_a_file_system_names_the_folder_and_the_way_out(
    number: int, code: ErrorCode, temporary: bool, text: str
) -> None:
    """The errors are stand-ins: no test can fill, unmount or break a disk everywhere."""
    found = explain(OSError(number, os.strerror(number)), "/data/out/a.mp4", "written")
    assert (found.code, found.temporary) == (code, temporary)
    assert text in found.text


@pytest.fixture
def no_room() -> Iterator[None]:
    """No file may be larger than 16 kB: what a full disk does, for this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_for_which_there_is_no_room_leaves_nothing(tmp_path: Path, no_room: None) -> None:
    with pytest.raises(StorageFailed) as caught:
        Folder(str(tmp_path)).write("edits/a.mp4", DATA)
    assert caught.value.trouble.code == ErrorCode.DISK_FULL
    assert str(caught.value).startswith(f"{tmp_path}/edits/a.mp4: cannot be written: ")
    assert f"in {tmp_path}/edits: " in str(caught.value)
    assert os.listdir(tmp_path / "edits") == []


def test_a_full_temporary_folder_is_no_trouble_of_the_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mp4").write_bytes(DATA)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, hard))
    try:
        with pytest.raises(RowError) as caught, local_copy(f"{tmp_path}/a.mp4"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == ErrorCode.DISK_FULL
    assert f"its temporary copy cannot be written: File too large in {tmp_path}" in str(
        caught.value
    )
    assert "TMPDIR names another folder" in caught.value.message


def test_a_write_below_a_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    (tmp_path / "folder").mkdir()
    for name, what in [("out/a/b", f"{tmp_path}/out is a file"), ("folder", "is a folder")]:
        with pytest.raises(StorageFailed, match=re.escape(f"cannot be written: {what}")):
            Folder(str(tmp_path)).write(name, b"")
    assert sorted(os.listdir(tmp_path)) == ["folder", "out"]


def test_a_folder_that_cannot_be_looked_into_is_not_taken_for_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results").mkdir()

    def refuse(folder: str) -> None:
        raise OSError(errno.EIO, "Input/output error", folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StorageFailed, match="Input/output error"):
        Folder(str(tmp_path)).list("results")


def test_a_failure_travels_between_processes() -> None:
    failed = StorageFailed("s3://b/a", explain(TimeoutError("slow"), "s3://b/a"))
    again = pickle.loads(pickle.dumps(failed))
    assert (str(again), again.trouble) == (str(failed), failed.trouble)
    assert explain(again, "s3://b/a") == failed.trouble
    assert explain(again, "s3://b").text == f"a: {failed.trouble.text}"
    assert is_temporary(again)


def test_an_error_of_a_program_is_neither_hidden_nor_repeated() -> None:
    calls: list[float] = []

    def wrong() -> None:
        calls.append(time.monotonic())
        raise KeyError("x")

    with pytest.raises(KeyError):
        patiently(wrong, "s3://b/a")
    assert len(calls) == 1


def test_what_the_caller_handles_already_is_no_cause(tmp_path: Path) -> None:
    try:
        raise TimeoutError("of a write")
    except TimeoutError:
        with pytest.raises(FileNotFoundError):
            Folder(str(tmp_path)).read("none")
        assert not Folder(str(tmp_path)).exists("none")


def test_a_patience_that_is_no_number_does_not_hide_the_trouble(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_patience_s", 0.0)
    monkeypatch.setenv("RETAKE_STORAGE_PATIENCE_S", "2m")
    proxy.until_healed(Fault.STATUS)
    with pytest.raises(StorageFailed, match="the server answered HTTP 503"):
        Folder(FOLDER).size("a.mp4")
    monkeypatch.setenv("RETAKE_STORAGE_TIMEOUT_S", "2m")
    assert write_deadline_s(0) == 40
