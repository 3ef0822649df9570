"""The writer of results keeps rows until storage takes them, and few files."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.job import CannotRun
from cluster.results import merging, writer
from cluster.results.compaction import compact, current_rows
from cluster.results.parts import part_names, read_parts
from cluster.results.schema import SCHEMA, to_parquet
from cluster.results.writer import ResultsNotStored, ResultWriter
from pipeline.storage import Folder

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def some_rows(*videos: str, **values: object) -> pa.Table:
    rows = [
        {"video_id": v, "edit_id": "a", "status": "ok", "fingerprint": "f", "finished_at": NOW}
        | values
        for v in videos
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def wait_for(true: Callable[[], object]) -> None:
    pause = threading.Event()
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "it never came"
        pause.wait(0.005)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(writer, "FLUSH_S", 0.02)
    monkeypatch.setattr(writer, "PAUSES_S", (0.005, 0.02))
    yield


def stored(output: Folder) -> list[str]:
    return [row["video_id"] for _, table in read_parts(output) for row in table.to_pylist()]


class Outage:
    """A file where the folder should be: each write fails, until it is removed."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "results"
        self.file.write_text("in the way")

    def end(self) -> None:
        self.file.unlink()


def test_rows_are_stored_within_seconds_and_several_tables_become_one_file(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    results = ResultWriter(output, "r", 60)
    for video in "abc":
        results.add(some_rows(video))
    wait_for(lambda: part_names(output))
    results.add(some_rows("d", "e"))
    results.close()
    assert stored(output) == ["a", "b", "c", "d", "e"]
    assert len(part_names(output)) <= 3
    assert results.note is None and not results.full
    assert not results._thread.is_alive()


def test_rows_are_kept_while_storage_takes_none_and_stored_once_it_does(tmp_path: Path) -> None:
    output, outage = Folder(str(tmp_path)), Outage(tmp_path)
    results = ResultWriter(output, "r", 60)
    results.add(some_rows("a"))
    wait_for(lambda: results.note)
    results.add(some_rows("b"))
    results.check()
    assert "results cannot be stored since" in (results.note or "")
    assert f"{tmp_path}/results" in (results.note or "")
    outage.end()
    wait_for(lambda: not results.note)
    results.close()
    assert stored(output) == ["a", "b"]


class Late(Folder):
    """Keeps the first writes of results, as a proxy does that answers nothing in time."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        object.__setattr__(self, "held", [])
        object.__setattr__(self, "answers", threading.Event())

    def write(self, name: str, data: bytes) -> None:
        if not self.answers.is_set():
            self.held.append((name, data))
            raise TimeoutError("no answer in 30 s")
        super().write(name, data)


def test_a_write_that_storage_carries_out_late_takes_no_row_away(tmp_path: Path) -> None:
    output = Late(str(tmp_path))
    results = ResultWriter(output, "r", 60)
    results.add(some_rows("a"))
    wait_for(lambda: output.held)
    results.add(some_rows("b"))
    kept = len(output.held)
    wait_for(lambda: len(output.held) > kept + 1)
    output.answers.set()
    wait_for(lambda: stored(output) == ["a", "b"])
    for name, data in output.held:
        output.write(name, data)
    results.close()
    assert sorted(stored(output)) == ["a", "b"]


def test_a_file_with_other_rows_than_were_written_is_not_put_together(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    merger = merging.Merging(output, "r")
    for number in range(merging.FILES_AT_ONCE):
        name = f"results/r-{number:06d}.parquet"
        output.write(name, to_parquet(some_rows(f"v{number}")))
        merger.written(name, 2 if number == 3 else 1)
    merger.merge()
    merger.finish()
    assert len(part_names(output)) == merging.FILES_AT_ONCE, "each is left as it is"


def test_too_many_waiting_rows_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FULL_ROWS", 3)
    output, outage = Folder(str(tmp_path)), Outage(tmp_path)
    results = ResultWriter(output, "r", 60)
    results.add(some_rows("a", "b"))
    assert not results.full
    results.add(some_rows("c"))
    assert results.full
    outage.end()
    results.close()
    assert not results.full


def test_after_its_patience_the_writer_gives_up_and_says_where_the_rows_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Folder(str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    outage = Outage(tmp_path / "out")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    results = ResultWriter(output, "r", 0.05)
    results.add(some_rows("a", "b"))
    with pytest.raises(ResultsNotStored, match="run the same command again") as raised:
        results.close()
    message = str(raised.value)
    assert f"{tmp_path}/out/results" in message
    assert "storage_patience_s" in message
    (rescued,) = tmp_path.glob("r-rescued-*.parquet")
    assert f"2 rows are kept in {rescued}: copy that file to" in message
    outage.end()
    (tmp_path / "out/results").mkdir()
    rescued.rename(tmp_path / "out/results" / rescued.name)
    assert stored(output) == ["a", "b"]


def test_check_raises_once_the_patience_has_ended(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    Outage(tmp_path)
    results = ResultWriter(output, "r", 0.02)
    results.add(some_rows("a"))

    def given_up() -> bool:
        try:
            results.check()
        except ResultsNotStored:
            return True
        return False

    wait_for(given_up)
    with pytest.raises(ResultsNotStored):
        results.close()


@pytest.mark.parametrize("grace_s", [0.0, 300.0])
def test_small_files_are_put_together_while_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grace_s: float
) -> None:
    monkeypatch.setattr(merging, "FILES_AT_ONCE", 4)
    monkeypatch.setattr(merging, "GRACE_S", grace_s)
    output = Folder(str(tmp_path))
    files = merging.Merging(output, "r")
    refused = some_rows("x", "x", fingerprint=None, status="failed", run="r")
    videos = [f"v{n:02d}" for n in range(37)]
    for number, video in enumerate(videos):
        name = f"results/r-{number:06d}.parquet"
        table = pa.concat_tables([some_rows(video), refused]) if number == 5 else some_rows(video)
        output.write(name, writer.to_parquet(table))
        files.written(name, table.num_rows)
        files.merge()
        if number % 5 and grace_s:
            continue  # it is the same thing with more files
        seen = sorted(row["video_id"] for row in current_rows(output))
        assert seen == sorted([*videos[: number + 1], *["x", "x"] * (number >= 5)])
    if not grace_s:
        assert len(part_names(output)) == 2 + 1 + 1  # 2 of 16, 1 of 4, 1
    files.finish()
    assert len(part_names(output)) == 4
    in_order = [video for video in stored(output) if video != "x"]
    assert in_order == videos, "later rows stay behind earlier ones"


def test_a_file_of_many_rows_is_not_put_together_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "ROWS_AT_ONCE", 5)
    output = Folder(str(tmp_path))
    files = merging.Merging(output, "r")
    for number in range(10):
        name = f"results/r-{number:06d}.parquet"
        output.write(name, writer.to_parquet(some_rows(f"{number}a", f"{number}b")))
        files.written(name, 2)
        files.merge()
    files.finish()
    assert [table.num_rows for _, table in read_parts(output)] == [6, 6, 6, 2]


def test_what_cannot_be_put_together_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "FILES_AT_ONCE", 2)
    output = Folder(str(tmp_path))
    files = merging.Merging(output, "r")
    output.write("results/r-000000.parquet", b"cut")
    files.written("results/r-000000.parquet", 1)
    for number in (1, 2):
        name = f"results/r-{number:06d}.parquet"
        output.write(name, writer.to_parquet(some_rows(f"v{number}")))
        files.written(name, 1)
        files.merge()
    files.finish()
    assert part_names(output) == [
        "results/r-000000.parquet",
        "results/r-000001-000002.parquet",
    ]


def test_the_rows_of_a_run_that_was_put_together_are_compacted_at_its_end(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    for run in ("r1", "r2"):
        results = ResultWriter(output, run, 60)
        results.add(some_rows("a", "b"))
        results.close()
    compact(output, "r3")
    assert stored(output) == ["a", "b"]


def test_a_run_that_lost_its_folder_stores_nothing_more(tmp_path: Path) -> None:
    lost = False

    def check() -> None:
        if lost:
            raise CannotRun("another run has taken the folder over")

    output = Folder(str(tmp_path))
    results = ResultWriter(output, "r", 60, check)
    results.add(some_rows("a"))
    wait_for(lambda: part_names(output))
    lost = True
    results.add(some_rows("b"))
    with pytest.raises(CannotRun, match="another run"):
        results.close()
    with pytest.raises(CannotRun, match="another run"):
        results.check()
    assert stored(output) == ["a"]


def test_rows_that_are_given_up_are_kept_in_one_file_whoever_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, output = tmp_path / "kept", tmp_path / "out"
    kept.mkdir(), output.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(kept))
    Outage(output)
    results = ResultWriter(Folder(str(output)), "r", 0.01)
    results.add(some_rows("a"))
    wait_for(lambda: results._given_up)
    for ask in (results.check, results.close):
        with pytest.raises(ResultsNotStored, match="r-rescued-"):
            ask()
    assert len(list(kept.iterdir())) == 1
