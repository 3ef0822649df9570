"""The record of an event: one line of JSON."""

import json
from typing import Any

import pytest

from cluster.events.record import LINE, LINES, MESSAGE, Event, Happened, read_line


def an_event(**about: Any) -> Event:
    return Event("2026-01-02T03:04:05.678Z", "info", "run began", "r", **about)


def test_a_line_has_the_fields_that_apply_and_is_read_as_it_was_written() -> None:
    event = an_event(process="rank", rank=0, video_id="fuchs-ö", counts={"edits": 2})
    line = event.to_line()
    assert line.endswith(b"\n")
    assert json.loads(line) == {
        "time": "2026-01-02T03:04:05.678Z",
        "level": "info",
        "event": "run began",
        "run": "r",
        "process": "rank",
        "rank": 0,
        "video_id": "fuchs-ö",
        "counts": {"edits": 2},
    }
    assert read_line(line) == event


def test_a_line_of_a_later_version_is_read_without_what_is_new() -> None:
    line = an_event(rank=1).to_line().replace(b'"rank"', b'"mood": 3, "rank"')
    assert read_line(line) == an_event(rank=1)


@pytest.mark.parametrize("line", [b'{"time": "2026', b"[]", b"7", b"{}", b"\xff\xfe"])
def test_what_is_no_event_is_none(line: bytes) -> None:
    assert read_line(line) is None


def test_no_secret_is_written_and_a_key_of_many_lines_goes_whole() -> None:
    key = ["-----BEGIN RSA PRIVATE KEY-----", "s3cret", "-----END RSA PRIVATE KEY-----"]
    event = an_event(message="GET https://u:s3cret@h/a.mp4", lines=["api_key=s3cretvalue", *key])
    text = event.to_line().decode()
    assert "s3cret" not in text
    assert "***" in text


@pytest.mark.parametrize("bound", [MESSAGE, LINE])
def test_a_secret_that_a_bound_would_cut_is_not_written_in_part(bound: int) -> None:
    key = f"hf_{'s3cret' * 5}"
    for text in (f"{'m' * (bound - 12)} {key}", f"{'m' * (bound - 20)} token={key}"):
        event = an_event(message=text, lines=[text, "-----BEGIN PRIVATE KEY-----", *[key] * LINES])
        assert b"s3c" not in event.to_line()


def test_a_line_is_bounded() -> None:
    event = an_event(message="m" * 10 * MESSAGE, lines=[f"{i} {'x' * 5000}" for i in range(200)])
    values = json.loads(event.to_line())
    assert len(values["message"]) == MESSAGE
    assert len(values["lines"]) == LINES
    assert values["lines"][-1].startswith("199 ")
    assert len(event.to_line()) < 40_000


def test_each_event_has_a_name_a_level_and_a_text() -> None:
    names = [one.value for one in Happened]
    assert len(set(names)) == len(names) == len(Happened.__members__)
    assert {one.level for one in Happened} == {"info", "warning", "error"}
    assert all(one.text.endswith(".") for one in Happened)
