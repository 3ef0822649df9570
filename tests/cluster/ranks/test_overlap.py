"""A group with two requests at a time: the accelerator's work, reading and writing side by side."""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from cluster.ranks.messages import EditVideo, Start, joined
from cluster.ranks.overlap import BESIDE_AT_ONCE, Overlap
from cluster.ranks.owner import RankGroup
from cluster.settings import ClusterSettings, GroupSettings
from cluster.stages import group as stages
from cluster.stages.group import GroupStage
from pipeline.errors import ErrorCode, RowError
from pipeline.records import EditSpec, InversionResult, VideoSpec
from tests.cluster.ranks.fake_rank import Command
from tests.cluster.ranks.overlapping_rank import VIDEOS
from tests.cluster.ranks.test_owner import COMMAND
from tests.cluster.test_stages import Reports
from tests.small_jobs import a_job

PROGRAM = [sys.executable, "-m", "tests.cluster.ranks.overlapping_rank"]
INVERSION = InversionResult("k", 5, 8, 8, 8.0, "s")


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_next_video_is_read_and_the_last_edits_are_written_while_the_accelerator_works(
    ranks: int,
) -> None:
    start = Start("edits", {}, "cpu")
    group = RankGroup(PROGRAM, ranks, start, start_deadline_s=60, stall_deadline_s=60)
    edits = tuple(EditSpec(name, edit_id=name) for name in "abc")
    requests = [EditVideo(VideoSpec(str(n), "v", edits=edits), INVERSION) for n in range(VIDEOS)]
    with ThreadPoolExecutor(2) as two_rows:  # as the threads of an owner
        answers = [joined(one) for one in two_rows.map(group.request, requests)]
    group.close()
    assert [answer.error for answer in answers] == [None] * VIDEOS
    for answer in answers:
        assert [made["edit_id"] for made in answer.result] == ["a", "b", "c"]
        assert [made["output"] for made in answer.result] == ["0", str(ranks - 1), "0"]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., GroupStage]]:
    """Makes a stage whose ranks are the fake ones."""
    monkeypatch.setattr(stages, "rank_command", lambda: COMMAND)
    made: list[GroupStage] = []

    class Stage(GroupStage):
        name = "reconstruction"

    def make(**cluster: Any) -> GroupStage:
        job = a_job(**cluster)
        assert isinstance(job.cluster, ClusterSettings)
        made.append(Stage("edits", job, Reports(), GroupSettings(), "cpu", 1))
        return made[-1]

    yield make
    for one in made:
        one.group.close()


def both(stage: GroupStage, first: Command, second: Command) -> list[tuple[Any, int]]:
    """What comes of two requests, of which the first is sent first."""
    talk = stage.group.ready()
    with ThreadPoolExecutor(2) as threads:
        asked: list[Future[Any]] = [threads.submit(stage.ask, first)]  # type: ignore[arg-type]
        while not talk._waiting:
            os.sched_yield()
        asked.append(threads.submit(stage.ask, second))  # type: ignore[arg-type]
        return [one.result() for one in asked]


@pytest.mark.parametrize("retries", [0, 1])
def test_only_the_request_that_was_worked_on_is_charged_with_a_death(
    stage: Callable[..., GroupStage], retries: int
) -> None:
    one = stage(retries=retries)
    (died, tries), (fine, tried_once) = both(
        one, Command("meet", then="die"), Command("echo", text="hello")
    )
    assert (died.error_code, tries) == (ErrorCode.RANK_DIED, retries + 1)
    assert (fine.result["echo"], tried_once) == ("hello", 1)
    assert one.group.starts in (retries + 2, retries + 1)


def test_where_two_requests_were_at_work_neither_is_charged_and_each_is_asked_again_alone(
    stage: Callable[..., GroupStage],
) -> None:
    """The first kills the rank while the second is worked on, and again when it is alone."""
    (died, tries), (fine, tried_once) = both(
        stage(retries=0), Command("meet beside", then="die"), Command("linger", text="hello")
    )
    assert (died.error_code, tries) == (ErrorCode.RANK_DIED, 1)
    assert (fine.result["echo"], tried_once) == ("hello", 1)


def test_a_request_that_failed_in_all_ranks_restarts_no_group_for_the_other(
    stage: Callable[..., GroupStage],
) -> None:
    one = stage(retries=0)
    (failed, _), (fine, tries) = both(one, Command("meet", then="row error"), Command("echo"))
    assert (failed.error_code, fine.error_code, tries) == ("video_too_short", None, 1)
    assert one.group.starts == 1


def test_a_rank_that_is_broken_takes_no_other_request(stage: Callable[..., GroupStage]) -> None:
    one = stage(retries=0)
    (failed, _), (fine, tries) = both(one, Command("meet", then="illegal access"), Command("echo"))
    assert (failed.error_code, fine.error_code, tries) == ("internal", None, 1)
    assert one.group.starts == 2


def test_what_fails_beside_is_its_requests_error_and_needs_no_restart(
    stage: Callable[..., GroupStage],
) -> None:
    one = stage(retries=0)
    (failed, _), (fine, _) = both(one, Command("meet beside", then="full disk"), Command("echo"))
    assert (failed.error_code, fine.error_code) == ("storage", None)
    assert one.group.starts == 1


def test_no_more_clips_wait_to_be_written_than_memory_is_meant_for() -> None:
    overlap, waiting, running = Overlap(), Future[None](), Future[None]()
    for _ in range(BESIDE_AT_ONCE):
        overlap.beside(waiting.result)
    with ThreadPoolExecutor(1) as thread:
        third = thread.submit(overlap.beside, lambda: running.set_result(None))
        assert not running.done()
        assert not third.done()
        waiting.set_result(None)
        running.result(20)
    assert len(overlap.begun()) == BESIDE_AT_ONCE + 1
    assert overlap.begun() == []


def test_two_requests_for_one_clip_are_both_read_ahead() -> None:
    """Units of work of one video, or two videos of one source."""
    overlap, read = Overlap(), iter(range(9))

    def too_late() -> int:
        raise AssertionError("the accelerator waits for a reading")

    for _ in range(2):
        overlap.read_ahead("clip", lambda: next(read))
    assert [overlap.read("clip", too_late) for _ in range(2)] == [0, 1]


def test_what_reading_ahead_raises_is_raised_where_it_is_read() -> None:
    overlap = Overlap()

    def fail() -> None:
        raise RowError(ErrorCode.VIDEO_UNREADABLE, "no video")

    overlap.read_ahead("clip", fail)
    with pytest.raises(RowError, match="no video"):
        overlap.read("clip", fail)
    assert overlap.read("clip", lambda: 7) == 7
