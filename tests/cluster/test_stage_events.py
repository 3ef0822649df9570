"""What an owner notes, with real rank processes that hold no model."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.events.record import LINES, Event
from cluster.events.stored import read_segments, segments
from cluster.settings import ClusterSettings
from cluster.stages import group as stages
from cluster.stages.edit import EditVideos
from pipeline.storage import Folder
from tests.cluster.ranks.test_owner import COMMAND
from tests.cluster.test_stages import GROUP, Reports, a_row, checked
from tests.small_jobs import a_job

Noted = Callable[..., list[Event]]


class Named(Reports):
    """A report of an owner with a name."""

    def attend(self, stage: str, doing: Any = str) -> str:
        return "0a1b2c3d"


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Noted]:
    """Works on one video, and gives its result rows and the events."""
    monkeypatch.setattr(stages, "rank_command", lambda: COMMAND)
    stage = None

    def work(video: str, *, rows: list[Any], **cluster: Any) -> list[Event]:
        nonlocal stage
        job = a_job()
        job = replace(
            job,
            editing=replace(job.editing, output=str(tmp_path / "out")),
            cluster=ClusterSettings(**cluster),
        )
        stage = EditVideos(job, Named(), GROUP, "cpu", 1)
        rows += stage(checked([a_row(video, "red", "blue", video_id="v")], job)).to_pylist()
        stage.group.close()
        stage.note.close()
        output = Folder(str(tmp_path / "out"))
        (files,) = segments(output).values()
        events = list(read_segments(output, [name for name, _ in files]))
        assert all((e.stage, e.group) == ("editing", "0a1b2c3d") for e in events)
        return events

    yield work
    if stage is not None:
        stage.group.close()


def names(events: list[Event]) -> list[str]:
    return [event.event for event in events]


def test_a_video_that_is_edited(noted: Noted, tmp_path: Path) -> None:
    events = noted(f"{tmp_path}/fine", rows=[])
    assert names(events) == [
        "group starting",
        "group ready",
        "video begun",
        "video done",
        "video begun",
        "video done",
        "edit stored",
        "edit stored",
    ]
    assert [event.part for event in events[2:6]] == ["inversion", "inversion", "edits", "edits"]
    assert events[5].edits == ["red", "blue"]
    assert [event.edit_id for event in events[6:]] == ["red", "blue"]
    assert {event.video_id for event in events[2:]} == {"v"}
    assert all(event.seconds is not None for event in (events[1], events[3], events[5]))


def test_a_video_that_kills_its_rank_each_time(noted: Noted, tmp_path: Path) -> None:
    rows: list[Any] = []
    events = noted(f"{tmp_path}/kills", rows=rows, retries=1)
    assert names(events) == [
        "group starting",
        "group ready",
        "video begun",
        "rank died",
        "group died",
        "group restarting",
        "group ready",
        "retry",
        "rank died",
        "group died",
        "quarantined",
        "edit failed",
        "edit failed",
    ]
    died = events[3]
    assert (died.process, died.rank, died.level) == ("rank", 0, "error")
    assert died.code == "signal 9, as where the memory of its node is full"
    assert died.lines == ["rank 0 of 1 is ready"]
    quarantined = events[10]
    assert (quarantined.video_id, quarantined.part) == ("v", "inversion")
    assert (quarantined.code, quarantined.tries) == ("rank_died", 2)
    for row in rows:
        first, *_, last = row["error"].splitlines()
        assert "its last log lines: rank 0 of 1 is ready" in first
        assert last == "more of the log: `retake logs OUTPUT --run r --level error`"


def test_a_video_that_stalls_its_group(noted: Noted, tmp_path: Path) -> None:
    rows: list[Any] = []
    events = noted(f"{tmp_path}/hangs", rows=rows, retries=0, stall_deadline_s=1)
    assert names(events)[2:] == [
        "video begun",
        "rank late",
        "group stalled",
        "quarantined",
        "edit failed",
        "edit failed",
    ]
    assert (events[3].rank, events[3].lines) == (0, ["rank 0 of 1 is ready"])
    assert events[4].message is not None
    assert events[4].message.startswith("no progress for 1 s")
    assert "The last log lines of rank 0 of 1: rank 0 of 1 is ready" in rows[0]["error"]


def test_a_video_that_cannot_be_read(noted: Noted, tmp_path: Path) -> None:
    events = noted(f"{tmp_path}/unreadable", rows=[])
    assert names(events)[2:] == ["video begun", "video failed", "edit failed", "edit failed"]
    assert {event.code for event in events[3:]} == {"video_unreadable"}


def test_a_group_that_cannot_start_and_one_that_can_again(
    noted: Noted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "refuses"
    marker.touch()
    monkeypatch.setenv("REFUSE_BESIDE", str(marker))
    monkeypatch.setattr(stages, "START_PAUSE_S", 0.01)
    monkeypatch.setattr(stages, "POLL_S", 0.01)

    def broken(report: Named, reason: str) -> None:
        marker.unlink()

    monkeypatch.setattr(Named, "broken", broken)
    events = noted(f"{tmp_path}/fine", rows=[])
    once = ["rank refused", "group died", "group not started"]
    again = ["group restarting", *once]
    expected = ["group starting", *once, *again, *again, "group broken"]
    expected += ["group restarting", "group ready"]
    assert names(events)[: len(expected) + 1] == [*expected, "group repaired"]
    assert events[1].message == "ValueError: no such checkpoint now"
    assert "ValueError: no such checkpoint now" in "\n".join(events[1].lines or ())


def test_an_error_of_ours_has_the_lines_that_say_where(
    noted: Noted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = noted(f"{tmp_path}/memory", rows=[])
    failed = next(event for event in events if event.event == "rank failed")
    assert (failed.rank, failed.code) == (0, "out_of_memory")
    assert failed.lines is not None
    assert "MemoryError: no more" in failed.lines[-1]
    assert len(failed.lines) <= LINES


def test_a_log_folder_that_cannot_be_written_changes_nothing(noted: Noted, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/logs").write_text("a file")
    rows: list[Any] = []
    with pytest.raises(ValueError, match="unpack"):  # there is no log
        noted(f"{tmp_path}/fine", rows=rows)
    assert [row["status"] for row in rows] == ["ok", "ok"]
