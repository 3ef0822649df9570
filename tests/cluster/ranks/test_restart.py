"""What ends a group, and what its rows then get: asked again, answered all the same, or failed."""

import os
import socket
import subprocess
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.ranks import conversation, process
from cluster.ranks.channel import Broken, Channel
from cluster.ranks.failures import RankGroupFailed
from cluster.ranks.messages import (
    Answer,
    EditVideo,
    Start,
    joined,
    parse_report,
    split_number,
    to_line,
)
from cluster.ranks.owner import CHANNEL
from cluster.settings import GroupSettings
from cluster.stages import group as stages
from cluster.stages.group import GroupStage
from pipeline.errors import ErrorCode
from tests.cluster.ranks.fake_rank import Command
from tests.cluster.ranks.test_overlap import both
from tests.cluster.ranks.test_owner import COMMAND, a_group
from tests.cluster.test_stages import Reports
from tests.small_jobs import a_job


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., GroupStage]]:
    """Makes a stage whose ranks are the fake ones."""
    monkeypatch.setattr(stages, "rank_command", lambda: COMMAND)
    made: list[GroupStage] = []

    class Stage(GroupStage):
        name = "reconstruction"

    def make(ranks: int = 1) -> GroupStage:
        job = a_job(retries=0)
        made.append(Stage("edits", job, Reports(), GroupSettings(gpus=ranks), "cpu", 1))
        return made[-1]

    yield make
    for one in made:
        one.group.close()


def ask(stage: GroupStage, command: Command) -> tuple[Answer, int]:
    return stage.ask(command)  # type: ignore[arg-type]


def test_a_group_of_several_whose_memory_runs_out_starts_again_with_the_smallest_parts(
    stage: Callable[..., GroupStage],
) -> None:
    one = stage(2)
    answer, tries = ask(one, Command("no memory"))
    assert (answer.error_code, tries, one.group.starts) == (None, 2, 2)
    assert ask(one, Command("no memory"))[1] == 1, "later starts and rows keep them"
    assert one.group.starts == 2


def test_a_row_whose_memory_runs_out_with_the_smallest_parts_fails(
    stage: Callable[..., GroupStage],
) -> None:
    one = stage(2)
    answer, tries = ask(one, Command("no memory", text="7"))
    assert (answer.error_code, tries, one.group.starts) == ("out_of_memory", 2, 2)
    answer, tries = ask(one, Command("no memory", text="7"))
    assert (answer.error_code, tries, one.group.starts) == ("out_of_memory", 1, 3)


def test_one_process_needs_no_restart_for_memory(stage: Callable[..., GroupStage]) -> None:
    one = stage(1)
    answer, tries = ask(one, Command("no memory"))
    assert (answer.error_code, tries, one.group.starts) == ("out_of_memory", 1, 1)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_process_that_broke_in_what_was_given_up_answers_and_takes_no_other_request(
    stage: Callable[..., GroupStage], ranks: int
) -> None:
    one = stage(ranks)
    (made, _), (next_one, tries) = both(
        one, Command("meet", then="break", rank="0", others="meet"), Command("echo", text="next")
    )
    assert (made.error_code, next_one.error_code, tries) == (None, None, 1)
    assert next_one.result["echo"] == "next"
    assert one.group.starts == 2


def test_a_failure_that_ends_the_group_loses_nothing_of_the_request_before(
    stage: Callable[..., GroupStage],
) -> None:
    """The first is still written when the second breaks the rank."""
    one = stage(1)
    (first, tries), (failed, _) = both(
        one, Command("meet beside", text="written"), Command("illegal access")
    )
    assert (first.result["echo"], tries, failed.error_code) == ("written", 1, "internal")
    assert one.group.starts == 1, "the first was asked twice"


def test_a_result_that_no_answer_can_hold_is_an_error_of_its_request() -> None:
    group = a_group(1, stall_s=5)
    assert "not JSON serializable" in str(group.request(Command("no JSON"))[0].error)
    assert group.request(Command("echo"))[0].error_code is None
    assert group.starts == 1
    group.close()


def test_a_process_that_cannot_be_started_is_a_failed_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_room(*_: Any, **__: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    group = a_group(2)
    monkeypatch.setattr(subprocess, "Popen", no_room)
    with pytest.raises(RankGroupFailed, match="Resource temporarily unavailable"):
        group.request(Command("echo"))
    assert group.pids() == []
    monkeypatch.undo()
    assert group.request(Command("echo", text="now"))[0].result["echo"] == "now"
    group.close()


def test_a_rank_that_no_signal_ends_holds_no_request_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process that waits inside a driver for a device that is gone."""
    monkeypatch.setattr(conversation, "CLOSE_S", 0.05)
    monkeypatch.setattr(conversation, "KILL_S", 0.05)
    group = a_group(2, stall_s=0.3)
    ranks = group.ready().ranks
    for rank in ranks:
        monkeypatch.setattr(rank.process, "wait", _never)
    with pytest.raises(RankGroupFailed, match="no progress"):
        group.request(Command("hang"))
    monkeypatch.undo()
    assert group.request(Command("echo", text="now"))[0].result["echo"] == "now"
    group.close()
    for rank in ranks:
        rank.process.wait(20)


def _never(timeout: float | None = None) -> int:
    assert timeout is not None, "waits for ever"
    raise subprocess.TimeoutExpired("a rank", timeout)


def test_a_group_that_is_closed_leaves_no_thread_and_no_open_file() -> None:
    group = a_group(2)
    group.request(Command("echo"))
    group.close()
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        group.request(Command("echo"))
        group.close()
    assert threading.active_count() <= threads  # those of a test before may have ended meanwhile
    assert len(os.listdir("/proc/self/fd")) <= files


def test_the_seconds_of_a_group_are_those_of_its_last_rank() -> None:
    one = joined([Answer(result=[1, None], seconds=2.0), Answer(result=[None, 2], seconds=3.0)])
    assert one == Answer(result=[1, 2], seconds=3.0)
    failed = joined([Answer(seconds=4.0), Answer(error_code=ErrorCode.STORAGE, seconds=3.0)])
    assert (failed.error_code, failed.seconds) == (ErrorCode.STORAGE, 4.0)


def test_a_request_that_failed_holds_nothing_when_the_next_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv(CHANNEL, str(theirs.detach()))
    held: list[weakref.ref[torch.Tensor]] = []

    def fail(**_: Any) -> None:
        latents = torch.zeros(3)
        held.append(weakref.ref(latents))
        raise KeyError("surprise")

    class Requests:
        def __init__(self) -> None:
            self.left = [(0, to_line(Start("edits", {}, "cpu"))), (1, Command("echo"))]

        def get(self) -> tuple[int, Any]:
            if not self.left:
                raise EOFError
            return self.left.pop(0)

    monkeypatch.setattr(process, "SimpleQueue", Requests)
    monkeypatch.setattr(Channel, "read", lambda *_: None)
    with ours, ours.makefile("rb") as lines:
        with pytest.raises(EOFError):
            process.serve(lambda *_: {Command: fail}, lambda line: line)
        assert held[0]() is None
        answers = (split_number(line)[1] for line in lines)  # progress is reported between them
        answer = parse_report(next(line for line in answers if b"KeyError" in line))
        next(answers)  # it has finished: a rank whose owner is gone ends its process, here ours
    assert isinstance(answer, Answer)
    assert answer.error_code == ErrorCode.INTERNAL
    assert answer.seconds > 0


@pytest.mark.parametrize("parts", [None, 1])
def test_a_rank_takes_the_parts_that_its_start_asks_for(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, parts: int | None
) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    settings = {"checkpoint": str(checkpoints["2b"]), "output": "unused"}
    ours, theirs = socket.socketpair()
    try:
        start = Start("edits", settings, "cpu", branches_at_once=parts)
        handle = process.prepare(start, Channel(theirs))
    finally:
        torch.set_grad_enabled(True)
        ours.close()
        theirs.close()
    rank = handle[EditVideo].args[0]  # type: ignore[attr-defined]
    assert rank.editor.model.max_branches == parts
    assert handle[Broken]() is False
    rank.give_up(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert handle[Broken]() is True
