"""A disk that is full for a while costs a rank time and no edit; one that stays full says where."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pipeline.errors import ErrorCode, RowError, StorageFailed
from pipeline.media.encoding import write_clip
from pipeline.storage import Folder, local_copy, patience, patiently
from tests.faults.scene.places import small_disk

MEGABYTES = 4
DATA = os.urandom(3 << 20)
NOISE = torch.randint(0, 256, (5, 256, 256, 3), dtype=torch.uint8)
"""Takes some hundred kB as a file."""


class Disk:
    """A small disk that something else fills.

    Attributes:
        heard: what was reported before each pause.
        room: bytes that were free during each pause.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.heard: list[str] = []
        self.room: list[int] = []
        self.freed_after = 2

    def fill(self, free: int) -> None:
        """Leave so many bytes."""
        left = self._free() - free
        (self.folder / "filler").write_bytes(bytes(left))
        assert self._free() == free

    def on_wait(self, text: str) -> None:
        self.heard.append(text)
        self.room.append(self._free())
        if len(self.heard) == self.freed_after:
            (self.folder / "filler").unlink()

    def _free(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_bsize


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """A full disk, as a rank sees it: it waits for room."""
    with small_disk(tmp_path / "disk", MEGABYTES) as mounted:
        if not mounted:
            pytest.skip("this user may mount no file system")
        disk = Disk(tmp_path / "disk")
        waits(monkeypatch, disk.on_wait)
        yield disk


def waits(monkeypatch: pytest.MonkeyPatch, on_wait: Callable[[str], None]) -> None:
    for name in ("_patience_s", "_waits_for_room", "_on_wait"):
        monkeypatch.setattr(patience, name, getattr(patience, name))
    patience.wait_long(on_wait)
    monkeypatch.setenv("RETAKE_STORAGE_PATIENCE_S", "20")
    monkeypatch.setattr(patience, "PAUSES_S", (0.01, 0.02))


def test_a_file_is_written_once_there_is_room(disk: Disk) -> None:
    disk.fill(1 << 20)
    Folder(str(disk.folder)).write("edits/a.mp4", DATA)
    assert (disk.folder / "edits/a.mp4").read_bytes() == DATA
    assert os.listdir(disk.folder / "edits") == ["a.mp4"]
    assert len(disk.heard) == 2
    assert disk.heard[0].startswith(
        f"the wait for {disk.folder}/edits/a.mp4, which could not be written: OSError: [Errno 28]"
    )
    assert min(disk.room) == 1 << 20, "nothing half written stays while it waits"


def test_a_video_is_copied_once_its_temporary_copy_has_room(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mp4").write_bytes(DATA)
    monkeypatch.setattr("tempfile.tempdir", str(disk.folder))
    disk.fill(1 << 20)
    pulses: list[None] = []
    with local_copy(f"{tmp_path}/a.mp4", on_read=lambda: pulses.append(None)) as (file, sha):
        assert file.read() == DATA
    assert sha == hashlib.sha256(DATA).hexdigest()
    assert len(disk.heard) == 2
    assert len(pulses) >= 3, "it is reported while it waits"
    assert min(disk.room) == 1 << 20, "nothing half written stays while it waits"


def test_an_edit_is_encoded_once_its_temporary_file_has_room(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = io.BytesIO()
    write_clip(whole, NOISE, fps=8)
    assert len(whole.getvalue()) > 1 << 17
    monkeypatch.setattr("tempfile.tempdir", str(disk.folder))
    disk.fill(1 << 16)
    again = io.BytesIO()
    write_clip(again, NOISE, fps=8)
    assert again.getvalue() == whole.getvalue()
    assert len(disk.heard) == 2
    assert min(disk.room) == 1 << 16, "nothing half written stays while it waits"


def test_a_disk_that_stays_full_costs_the_row_and_names_the_folder(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETAKE_STORAGE_PATIENCE_S", "0.05")
    disk.freed_after = 0
    (tmp_path / "a.mp4").write_bytes(DATA)
    monkeypatch.setattr("tempfile.tempdir", str(disk.folder))
    disk.fill(1 << 16)
    with pytest.raises(StorageFailed) as written:
        Folder(str(disk.folder)).write("a.mp4", DATA)
    with pytest.raises(RowError) as copied, local_copy(f"{tmp_path}/a.mp4"):
        pass
    with pytest.raises(RowError) as encoded:
        write_clip(io.BytesIO(), NOISE, fps=8)
    no_room = f"cannot be written: no space is left in {disk.folder}: free some"
    assert written.value.trouble.code == ErrorCode.DISK_FULL
    assert str(written.value).startswith(f"{disk.folder}/a.mp4: {no_room}")
    for failed, what in [(copied, f"{tmp_path}/a.mp4"), (encoded, "an edit")]:
        assert failed.value.code == ErrorCode.DISK_FULL
        assert failed.value.message.startswith(f"{what}: its temporary copy {no_room}")
        assert failed.value.message.endswith(
            "TMPDIR names another folder for such copies, on every node"
        )
    assert len(disk.heard) >= 3
    assert os.listdir(disk.folder) == ["filler"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_and_a_used_up_quota_are_waited_for_by_ranks_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The error is a stand-in: not everybody may fill a disk of their own."""
    left = [OSError(number, os.strerror(number))] * 4
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: raise_(left.pop()) if left else sync(fd))
    monkeypatch.setattr(patience, "_waits_for_room", False)
    folder = Folder(str(tmp_path))
    with pytest.raises(StorageFailed, match=f" (in|of) {tmp_path}"):
        folder.write("a", b"1")
    assert len(left) == 3, "a person is told at once"
    heard: list[str] = []
    waits(monkeypatch, heard.append)
    folder.write("a", b"1")
    assert (folder.read("a"), len(heard)) == (b"1", 3)


def test_what_was_waited_for_is_not_waited_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    waits(monkeypatch, heard.append)
    monkeypatch.setenv("RETAKE_STORAGE_PATIENCE_S", "0.02")

    def inside() -> None:
        patiently(lambda: raise_(OSError(errno.ENOSPC, "no space")), "/out/a", "written")

    calls: list[None] = []
    with pytest.raises(StorageFailed):
        patiently(lambda: (calls.append(None), inside()), "/out", "written")
    assert len(calls) == 1


def raise_(error: Exception) -> None:
    raise error
