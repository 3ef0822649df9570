"""How long clips really are: videos are opened, and no fault of theirs stops a plan."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs.plan import clips
from jobs.plan.clips import as_seen, look_at
from jobs.plan.count import Kind, Source
from pipeline.media import apart
from pipeline.media.counts import FrameRule
from pipeline.settings import EditingSettings
from tests.drawn_videos import draw, grays

RULE = FrameRule()
EDITING = EditingSettings(output="out")


@pytest.fixture(autouse=True, scope="module")
def no_process_is_left() -> Iterator[None]:
    yield
    while apart._Decoder._idle:
        apart._Decoder._idle.pop().end()


def test_clips_are_as_long_as_the_rule_start_and_rate_make_them(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(draw(grays(20)))
    sources = [
        Source("a.mp4", 0, None, None),
        Source("a.mp4", 8, None, None),
        Source("a.mp4", 0, None, 4.0),
    ]
    seen = look_at(sources, str(tmp_path), EDITING, RULE, 49, budget_s=60)
    assert (seen.asked, seen.frames, seen.failed, seen.late) == (3, (9, 9, 17), 0, 0)
    assert look_at(sources[:1], str(tmp_path), EDITING, RULE, 9, budget_s=60).frames == (9,)


def test_what_cannot_be_read_is_counted_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    sources = [Source("a.mp4", 0, None, None), Source("none.mp4", 0, None, None)]
    seen = look_at(sources, str(tmp_path), EDITING, RULE, 49, budget_s=60)
    assert (seen.frames, seen.failed, seen.late) == ((), 2, 0)
    assert f"{tmp_path}/a.mp4" in seen.why


def test_a_storage_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()

    @contextmanager
    def hangs(*_: Any, **__: Any) -> Iterator[Any]:
        held.wait()
        raise OSError
        yield

    monkeypatch.setattr(clips, "local_copy", hangs)
    try:
        seen = look_at([Source("a.mp4", 0, None, None)] * 6, "", EDITING, RULE, 49, budget_s=0.05)
    finally:
        held.set()
    assert (seen.asked, seen.frames, seen.failed, seen.late) == (6, (), 0, 6)


def test_clips_get_the_lengths_that_were_seen_cut_at_their_bound() -> None:
    kinds = {Kind(49, 4): 100, Kind(17, 2): 8}
    spread = as_seen(kinds, (9, 33, 49, 49), RULE)
    assert spread == {
        Kind(9, 4): 25,
        Kind(33, 4): 25,
        Kind(49, 4): 50,
        Kind(9, 2): 2,
        Kind(17, 2): 6,
    }
    assert sum(spread.values()) == 108


def test_the_longest_clip_that_may_come_is_planned_for() -> None:
    assert as_seen({Kind(49, 4): 100}, (9, 9, 33), RULE) == {
        Kind(9, 4): 66,
        Kind(33, 4): 33,
        Kind(49, 4): 1,
    }


@pytest.mark.parametrize("videos", [1, 2, 3, 7, 1_000_001])
def test_no_video_is_lost_where_shares_are_no_whole_numbers(videos: int) -> None:
    assert sum(as_seen({Kind(49, 1): videos}, (9, 17, 49), RULE).values()) == videos
