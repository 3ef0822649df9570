"""`retake logs`: what was stored by several processes is shown in one order."""

import json
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.events.record import Event
from cluster.events.stored import AT_ONCE, read_segments
from cluster.output.holder import Holder
from jobs.cli import app
from jobs.errors import JobError
from jobs.logs import QUIET_LOOKS, Wanted, followed
from pipeline.storage import Folder

EARLIER, RUN = "20260101T000000.000000", "20260102T000000.000000"


def an_event(second: float, event: str, **about: Any) -> Event:
    values = {"level": "info", "run": RUN, **about}
    return Event(time=f"2026-01-02T10:00:{second:06.3f}Z", event=event, **values)


def store(output: Path, name: str, *events: Event, run: str = RUN) -> Path:
    file = output / "logs" / run / f"{name}-0000.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as opened:
        opened.write(b"".join(event.to_line() for event in events))
    return file


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The logs of two runs; the later one has a driver and a group, and a rank that died."""
    owner: dict[str, Any] = {"host": "n1", "stage": "editing", "group": "0a1b2c3d"}
    store(tmp_path, "driver", an_event(0, "run began"), run=EARLIER)
    store(
        tmp_path,
        "driver",
        an_event(1, "run began", counts={"videos": 2, "edits": 3}),
        an_event(30, "run ended", counts={"edited": 3, "failed": 0}, seconds=29.0),
    )
    store(
        tmp_path,
        "owner",
        an_event(5.5, "video begun", video_id="a", part="edits", edits=["red", "blue"], **owner),
        an_event(
            7,
            "rank died",
            level="error",
            rank=0,
            code="signal 9",
            lines=["one", "two"],
            **owner,
        ),
        an_event(8, "retry", level="warning", video_id="b", message="rank 0\nmore", **owner),
    )
    return tmp_path


def retake(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def test_the_newest_run_is_shown_in_the_order_of_time(output: Path) -> None:
    status, text = retake("logs", str(output))
    assert status == 0
    assert text == (
        "10:00:01.000   run began 2 videos, 3 edits\n"
        "10:00:05.500   video begun a edits (red, blue) (editing 0a1b2c3d on n1)\n"
        "10:00:07.000 X rank died [signal 9] (editing 0a1b2c3d rank 0 on n1)\n"
        "    | one\n"
        "    | two\n"
        "10:00:08.000 ! retry b (editing 0a1b2c3d on n1): rank 0\n"
        "    more\n"
        "10:00:30.000   run ended 3 edited, 0 failed 29.0 s\n"
    )


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--level", "warning"], ["rank died", "retry"]),
        (["--level", "error"], ["rank died"]),
        (["--video", "b"], ["retry"]),
        (["--run", EARLIER], ["run began"]),
    ],
)
def test_what_is_shown_can_be_chosen(output: Path, options: list[str], names: list[str]) -> None:
    status, text = retake("logs", str(output), "--json", *options)
    assert status == 0
    assert [json.loads(line)["event"] for line in text.splitlines()] == names


def test_lines_for_a_program_are_json_whatever_looks_like_a_secret(tmp_path: Path) -> None:
    key = "-----BEGIN PRIVATE KEY-----s3cret"
    texts = ["cannot reach https://h:abc", "mail bob@example.com", key]
    store(tmp_path, "driver", *(an_event(1, "retry", message=one, lines=texts) for one in texts))
    status, text = retake("logs", str(tmp_path), "--json")
    assert status == 0
    events = [json.loads(line) for line in text.splitlines()]
    assert [event["lines"][:2] for event in events] == [texts[:2]] * 3
    assert "s3cret" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--level", "loud"], "--level 'loud': expected one of info, warning, error"),
        (["--run", "20260101T000000.00000"], f"has no log of it; did you mean {EARLIER}?"),
        (["--run", "x"], f"has no log of it; there are {EARLIER}, {RUN}"),
        (["--address", "http://h:1"], "--address is for the id of a submitted job"),
    ],
)
def test_a_wrong_choice_is_one_message(output: Path, options: list[str], message: str) -> None:
    status, text = retake("logs", str(output), *options)
    assert status in (1, 2)
    assert message in text


def test_a_folder_without_logs_is_one_message(tmp_path: Path) -> None:
    status, text = retake("logs", str(tmp_path))
    assert status == 1
    assert f"{tmp_path}: has no logs/*/*.jsonl" in text


def test_a_run_is_followed_to_its_end_and_no_line_is_shown_in_parts(tmp_path: Path) -> None:
    file = store(tmp_path, "driver", an_event(1, "run began"))
    late = an_event(3, "edit stored", video_id="v").to_line()
    steps: list[Callable[[], object]] = [
        lambda: store(tmp_path, "owner", an_event(2, "video begun", video_id="v")),
        lambda: file.open("ab").write(late[:20]),
        lambda: file.open("ab").write(late[20:]),
        lambda: store(tmp_path, "driver", an_event(4, "run ended")),
        lambda: store(tmp_path, "owner", an_event(3.5, "video done", video_id="v")),
        lambda: None,
    ]
    waits = iter(steps)
    shown = list(followed(str(tmp_path), None, Wanted(), lambda _: next(waits)()))
    names = ["run began", "video begun", "edit stored", "run ended", "video done"]
    assert [event.event for event in shown] == names


def test_a_run_that_was_killed_is_not_followed_for_ever(tmp_path: Path) -> None:
    """One that lives and has nothing to say is: its lease changes."""
    store(tmp_path, "driver", an_event(1, "run began"))
    lease, waits = Folder(str(tmp_path)), count()

    def wait(_: float) -> None:
        if (look := next(waits)) < 3 * QUIET_LOOKS:
            renewed = f"2026-01-02T10:00:{look % 60:02d}+00:00"
            holder = Holder.this_process(RUN, "retake run", ())
            lease.write("lease/000001.json", holder.as_json(host="n1", renewed=renewed))

    shown = followed(str(tmp_path), None, Wanted(), wait)
    assert next(shown).event == "run began"
    with pytest.raises(JobError, match="it has probably been killed"):
        next(shown)
    assert 3 * QUIET_LOOKS < next(waits) <= 5 * QUIET_LOOKS + 1


def test_a_long_log_is_not_held_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        str(store(tmp_path, f"owner-{number:03d}", an_event(1, "retry")).relative_to(tmp_path))
        for number in range(3 * AT_ONCE)
    ]
    read: list[str] = []
    real = Folder.read
    monkeypatch.setattr(Folder, "read", lambda *of: read.append(of[1]) or real(*of))
    events = read_segments(Folder(str(tmp_path)), names)
    next(events)
    assert len(read) <= AT_ONCE
    assert len(list(events)) == len(names) - 1


def test_a_folder_that_storage_does_not_give_is_one_message(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pipeline.storage.Folder.read", refuse)
    status, text = retake("logs", str(output))
    assert status == 1
    assert f"{output}/logs: " in text
    assert threading.active_count() < 50


def test_gc_keeps_the_logs_of_the_last_runs(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("about: {run: x}\n")
    for day in range(1, 14):
        store(tmp_path, "driver", an_event(1, "run began"), run=f"202601{day:02d}T000000.000000")
    status, text = retake("gc", str(tmp_path), "--dry-run")
    assert (status, text.splitlines()[-1]) == (
        0,
        "logs of 3 runs before the last 10, 0.0 MB would be deleted",
    )
    assert len(list((tmp_path / "logs").iterdir())) == 13
    status, text = retake("gc", str(tmp_path))
    assert (status, text.splitlines()[-1]) == (
        0,
        "logs of 3 runs before the last 10, 0.0 MB deleted",
    )
    left = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert left == [f"202601{day:02d}T000000.000000" for day in range(4, 14)]
