"""The writer of events: nothing that storage does reaches who notes them."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.events import log as logs
from cluster.events.log import EventLog
from cluster.events.record import Event, Happened
from cluster.events.stored import read_segments, segments
from pipeline.storage import Folder
from tests.s3_server import s3_server
from tests.small_jobs import NUMBER

RUN = "20260101T000000.000000"


def events_of(output: Folder) -> list[Event]:
    names = [name for files in segments(output).values() for name, _ in files]
    return list(read_segments(output, names))


def waited(done: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_events_are_in_a_local_file_soon_and_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    note = EventLog(Folder(str(tmp_path)), RUN, "owner", stage="editing", group="ab12")
    note(Happened.VIDEO_BEGUN, video_id="a", part="inversion")
    waited(lambda: bool(list(tmp_path.rglob("*.jsonl"))))
    note(Happened.VIDEO_DONE, video_id="a", part="inversion", seconds=1.5)
    note.close()
    (file,) = (tmp_path / "logs" / RUN).iterdir()
    assert file.name.startswith("owner-ab12-")
    assert file.name.endswith("-0000.jsonl")
    first, second = map(json.loads, file.read_text().splitlines())
    assert (first["event"], second["event"]) == ("video begun", "video done")
    assert first["time"] <= second["time"]
    assert (first["level"], first["run"], first["process"]) == ("info", RUN, "owner")
    assert (first["stage"], first["group"], second["seconds"]) == ("editing", "ab12", 1.5)
    with file.open("ab") as torn:
        torn.write(b'{"time": "2026-01-0')
    assert [e.event for e in events_of(Folder(str(tmp_path)))] == ["video begun", "video done"]


def test_a_process_that_may_be_ended_any_moment_has_its_events_stored_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "GATHER_S", 60.0)
    note = EventLog(Folder(str(tmp_path)), RUN, "owner")
    note(Happened.VIDEO_BEGUN, video_id="a", part="inversion")
    note.hurry()
    waited(lambda: len(events_of(Folder(str(tmp_path)))) == 1)
    note.close()


def test_a_local_log_goes_on_in_another_file_when_one_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "LOCAL_SEGMENT_BYTES", 1000)
    monkeypatch.setattr(logs, "GATHER_S", 0.01)
    note = EventLog(Folder(str(tmp_path)), RUN, "driver")
    for number in range(20):
        note(Happened.EDIT_STORED, video_id=f"v{number}")
        waited(lambda n=number: len(events_of(Folder(str(tmp_path)))) == n + 1)  # type: ignore[misc]
    note.close()
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.jsonl")]
    assert len(sizes) > 2
    assert max(sizes) < 1300
    stored = [event.video_id for event in events_of(Folder(str(tmp_path)))]
    assert stored == [f"v{number}" for number in range(20)]


def test_an_unknown_field_is_no_error_of_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = EventLog(Folder(str(tmp_path)), RUN, "driver")
    note(Happened.RUN_BEGAN, mood="good")
    note(Happened.RUN_ENDED)
    note.close()
    assert [event.event for event in events_of(Folder(str(tmp_path)))] == ["run ended"]
    assert "mood" in capsys.readouterr().err


class Refusing(Folder):
    """A folder that takes nothing as long as it is closed."""

    closed = threading.Event()
    tries = Counter[str]()

    def write(self, name: str, data: bytes) -> None:
        self.tries[name] += 1
        if self.closed.is_set():
            raise OSError(28, "No space left on device")
        super().write(name, data)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    for name in ("GATHER_S", "FLUSH_S", "TROUBLE_S"):
        monkeypatch.setattr(logs, name, 0.01)
    Refusing.tries.clear()
    Refusing.closed.set()
    yield Refusing(f"memory://events{next(NUMBER)}")
    Refusing.closed.clear()


def test_what_storage_did_not_take_is_stored_once_when_it_does(refusing: Any) -> None:
    note = EventLog(refusing, RUN, "driver")
    for number in range(5):
        note(Happened.EDIT_STORED, video_id=f"v{number}")
    waited(lambda: refusing.tries.total() > 2)
    refusing.closed.clear()
    note(Happened.RUN_ENDED)
    waited(lambda: len(events_of(refusing)) == 6)
    note.close()
    stored = [event.video_id or event.event for event in events_of(refusing)]
    assert stored == ["v0", "v1", "v2", "v3", "v4", "run ended"]


def test_the_oldest_events_are_dropped_and_counted_where_storage_takes_none(
    refusing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MOST_BYTES", 20_000)
    note = EventLog(refusing, RUN, "driver")
    note(Happened.RUN_BEGAN)
    waited(lambda: refusing.tries.total() > 1)  # it holds the first, and takes no more
    for number in range(1000):
        note(Happened.EDIT_STORED, video_id=f"v{number}")
    refusing.closed.clear()
    waited(lambda: len(events_of(refusing)) > 1)
    note.close()
    first, dropped, *rest = events_of(refusing)
    assert first.event == "run began"
    assert (dropped.event, dropped.level) == ("events dropped", "warning")
    assert dropped.counts == {"events": 1000 - len(rest)}
    assert rest[-1].video_id == "v999"
    assert 30 < len(rest) <= 40


def test_who_notes_events_waits_for_no_storage_and_the_end_waits_a_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "CLOSE_S", 0.2)
    go_on = threading.Event()
    monkeypatch.setattr(Folder, "write_at", lambda *_: go_on.wait(30))
    note = EventLog(Folder(str(tmp_path)), RUN, "driver")
    began = time.monotonic()
    for _ in range(1000):
        note(Happened.EDIT_STORED, video_id="v")
    assert time.monotonic() - began < 1
    note.close()
    assert time.monotonic() - began < 2
    go_on.set()


def test_a_place_that_cannot_be_a_folder_is_one_line_in_the_process_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("a file")
    note = EventLog(Folder(str(tmp_path)), RUN, "driver")
    note(Happened.RUN_BEGAN)
    note.close()
    assert capsys.readouterr().err.count("events cannot be stored") == 1


@pytest.mark.s3
def test_object_storage_gets_few_writes_and_segments_that_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "SEGMENT_BYTES", 20_000)
    monkeypatch.setattr(logs, "FLUSH_S", 0.5)
    requests = tmp_path / "requests"
    with s3_server(requests) as access:
        for name, value in access.items():
            monkeypatch.setenv(name, value)
        output = Folder("s3://bucket/out")
        output.fs.mkdir("bucket")
        note = EventLog(output, RUN, "owner", group="ab12")
        began = time.monotonic()
        for number in range(300):
            note(Happened.EDIT_STORED, video_id=f"v{number}")
            time.sleep(0.005)
        note.close()
        seconds = time.monotonic() - began
        puts = [line for line in requests.read_text().splitlines() if ".jsonl" in line]
        assert len(puts) <= seconds / 0.5 + 2
        stored = [event.video_id for event in events_of(output)]
        assert stored == [f"v{number}" for number in range(300)]
        (files,) = segments(output).values()
        assert 2 <= len(files) <= 4
