"""What the driver notes of the nodes, and of a run's end."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.events import driver
from cluster.events.driver import RunEvents, events_of
from cluster.events.record import Happened
from cluster.events.stored import read_segments, segments
from cluster.layout.placement import Node
from cluster.layout.work import Amount
from pipeline.storage import Folder
from tests.small_jobs import a_job


class Notes:
    """A `Note` that a test reads."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.came = threading.Condition()

    def __call__(self, event: Happened, /, **about: Any) -> None:
        with self.came:
            self.events.append((event.value, about))
            self.came.notify_all()


def test_nodes_that_come_and_leave_are_noted_though_the_head_is_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver, "LOOK_S", 0.01)
    looks = iter([["a"], ["a", "b"], None, ["b"]])
    notes = Notes()

    def look() -> list[Node]:
        names = next(looks, ["b"])
        if names is None:
            raise ConnectionError("busy")
        return [Node(f"host-{name}", {}, {}, name) for name in names]

    with RunEvents(notes).watching(look), notes.came:
        assert notes.came.wait_for(lambda: len(notes.events) == 2, 10)
    assert notes.events == [("node came", {"node": "host-b"}), ("node left", {"node": "host-a"})]


def test_a_head_that_does_not_answer_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "JOIN_S", 0.1)
    go_on, began = threading.Event(), time.monotonic()
    with RunEvents(Notes()).watching(lambda: [Node(str(go_on.wait(30)), {}, {})]):
        pass
    assert time.monotonic() - began < 5
    go_on.set()


def test_a_refused_row_is_noted_whatever_its_other_columns_hold() -> None:
    year_10000 = pa.array([10**15], pa.int64()).cast(pa.timestamp("ms"))
    values = {"video_id": ["v"], "edit_id": ["e"], "error_code": ["bad_uri"], "error": ["no"]}
    notes = Notes()
    RunEvents(notes).refused(pa.table({**values, "taken_at": year_10000}))
    about = {"video_id": "v", "edit_id": "e", "code": "bad_uri", "message": "no"}
    assert notes.events == [("edit failed", about)]


def test_a_run_that_a_signal_ends_before_its_work_is_no_error() -> None:
    notes = Notes()
    RunEvents(notes).over(KeyboardInterrupt())
    ((event, about),) = notes.events
    assert (event, about["level"], about["message"]) == (
        "run ended",
        "warning",
        "KeyboardInterrupt",
    )


def test_a_run_that_fails_ends_with_its_reason(tmp_path: Path) -> None:
    job = a_job()
    job = replace(job, editing=replace(job.editing, output=str(tmp_path)))
    with pytest.raises(ValueError, match="no room"), events_of(job, Amount(2, 3)) as events:
        events.stopping(asked=True)
        events.stopping(asked=True)
        raise ValueError("no room")
    output = Folder(str(tmp_path))
    (files,) = segments(output).values()
    stored = list(read_segments(output, [name for name, _ in files]))
    assert [event.event for event in stored] == ["run began", "stop asked", "run ended"]
    assert stored[0].counts == {"videos": 2, "edits": 3}
    assert (stored[-1].level, stored[-1].message) == ("error", "ValueError: no room")
