"""Files that fail or change while they are read, and writes that a server does not take."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from contextlib import suppress
from typing import Any

import pytest

from cluster.output.exclusive import create
from pipeline.errors import StorageFailed
from pipeline.storage import (
    Folder,
    explain,
    files,
    local_copy,
    open_file,
    patience,
    write_file,
)
from pipeline.storage.systems import write_deadline_s
from pipeline.storage.trouble import is_temporary
from tests.fault_proxy import DATA, Fault, FaultProxy
from tests.pipeline.test_patience import FOLDER, SAME, copied

pytestmark = pytest.mark.s3


@pytest.mark.parametrize("fault", [Fault.NO_CONTINUE, Fault.UNREAD, Fault.STALL])
@pytest.mark.parametrize("size", [1_000, 20_000_000])
def test_a_server_that_takes_no_upload_is_no_hang(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, fault: Fault, size: int
) -> None:
    monkeypatch.setenv("RETAKE_STORAGE_PATIENCE_S", "0")
    proxy.until_healed(fault, method="PUT")
    for write in (Folder(FOLDER).write, lambda name, data: write_file(f"{FOLDER}/{name}", data)):
        with pytest.raises(StorageFailed, match="the storage gives no answer in time") as caught:
            write("none", bytes(size))
        assert caught.value.trouble.temporary
    with pytest.raises(Exception) as failed:  # the client's own kinds too
        create(Folder(FOLDER), "none", bytes(size))
    assert is_temporary(failed.value)
    proxy.heal()
    assert not Folder(FOLDER).exists("none")


def test_a_write_that_is_over_its_deadline_does_not_arrive_later(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETAKE_STORAGE_PATIENCE_S", "0")
    held = tuple(threading.enumerate())
    proxy.next(Fault.NO_CONTINUE, method="PUT")
    with pytest.raises(StorageFailed, match="1 bytes were not taken in 1 s"):
        Folder(FOLDER).write("late", b"1")
    count = len(proxy.seen)
    proxy.heal()
    for thread in set(threading.enumerate()).difference(held):  # those of the proxy
        thread.join(0.3)
    assert [asked for asked, _ in proxy.seen[count:] if asked.startswith("PUT")] == []
    assert not Folder(FOLDER).exists("late")


def test_a_large_write_has_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RETAKE_STORAGE_TIMEOUT_S", raising=False)
    assert write_deadline_s(0) == 40
    assert write_deadline_s(160 << 20) == 340


def test_a_file_goes_to_s3_by_one_request(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One in parts would leave those that arrived where the process is killed."""
    monkeypatch.setenv("RETAKE_STORAGE_TIMEOUT_S", "30")
    count = len(proxy.seen)
    Folder(FOLDER).write("large", bytes(101 << 20))
    assert [asked.split("?")[0] for asked, _ in proxy.seen[count:]] == ["PUT /clips/large"]
    Folder(FOLDER).remove("large")


@pytest.fixture
def small_blocks(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """s3fs fetches 50 MB at once."""
    monkeypatch.setattr(Folder(FOLDER).fs, "default_block_size", 5 << 20)


def test_a_video_that_is_replaced_while_it_is_copied_is_copied_from_its_start(
    small_blocks: None,
) -> None:
    Folder(FOLDER).write("changes", bytes(18 << 20))
    replaced = []

    def on_read() -> None:
        if not replaced:
            replaced.append(Folder(FOLDER).write("changes", DATA))

    with local_copy(f"{FOLDER}/changes", on_read) as (_, sha):
        assert sha == SAME


def test_an_archive_that_is_replaced_is_opened_again(proxy: FaultProxy) -> None:
    for data in (bytes(10), DATA):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("a.mp4", data)
        Folder(FOLDER).write("d.zip", packed.getvalue())
        assert copied(f"zip://a.mp4::{FOLDER}/d.zip") == hashlib.sha256(data).hexdigest()


def test_parts_of_two_versions_of_a_file_are_never_mixed(small_blocks: None) -> None:
    Folder(FOLDER).write("changes", bytes(12 << 20))
    with open_file(f"{FOLDER}/changes") as file:
        file.read(10)
        Folder(FOLDER).write("changes", DATA)
        with pytest.raises(OSError, match="no longer exists") as caught:
            file.seek(11 << 20)
            file.read(10)
    found = explain(caught.value, f"{FOLDER}/changes")
    assert found.text == "was changed while it was read; run again when nothing writes to it"


def test_a_file_that_was_replaced_since_it_was_listed_is_opened_again(proxy: FaultProxy) -> None:
    folder = Folder(FOLDER)
    folder.write("changes", bytes(len(DATA)))
    assert "changes" in folder.list()  # now s3fs knows its ETag
    file = folder.open("changes")
    folder.write("changes", DATA)
    with file:
        assert file.read() == DATA


class Fails:
    """A file of which each part is given after `fails_s` of failures, and takes `takes_s`."""

    def __init__(self, parts: int, fails_s: float, takes_s: float, clock: Any) -> None:
        self.left, self.fails_s, self.takes_s, self.clock = parts, fails_s, takes_s, clock
        self.until, self.at = clock.now + fails_s, 0

    def read(self, _: int) -> bytes:
        if self.clock.now < self.until:
            self.clock.now += 1
            raise ConnectionResetError("reset")
        self.clock.now += self.takes_s
        self.left -= 1
        self.until = self.clock.now + self.fails_s
        return b"x" * (self.left >= 0)

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return 0

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("fails_s", "takes_s", "most_parts"), [(10, 1, 13), (100, 1, 1), (10, 30, 1000), (0, 0, 1000)]
)
def test_all_parts_of_a_file_share_one_patience(
    monkeypatch: pytest.MonkeyPatch, fails_s: float, takes_s: float, most_parts: int
) -> None:
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            self.now += seconds

    clock = Clock()
    monkeypatch.setenv("RETAKE_STORAGE_PATIENCE_S", "120")
    monkeypatch.setattr(patience, "time", clock)
    monkeypatch.setattr(files, "time", clock)
    file = files.PatientFile(lambda: (None, Fails(1000, fails_s, takes_s, clock)), "s3://b/a")
    came = 0
    with suppress(StorageFailed):
        while came < 1000:
            came += len(file.read(8))
    assert came == pytest.approx(most_parts, rel=0.4)
    assert clock.now <= 1000 * takes_s * 2 + 2 * 120
