"""The rank group with real processes that hold no model."""

import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.ranks.failures import DeadlinePassed, GroupCannotStart, RankDied, RankGroupFailed
from cluster.ranks.messages import Start
from cluster.ranks.owner import RankGroup
from cluster.ranks.rank import LOG_READ, LOG_TAIL, Rank
from tests.cluster.ranks.fake_rank import Command

COMMAND = [sys.executable, "-m", "tests.cluster.ranks.fake_rank"]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def a_group(ranks: int = 2, *, stall_s: float = 60, **start: object) -> RankGroup:
    message = Start("edits", start, "cpu")
    return RankGroup(COMMAND, ranks, message, start_deadline_s=60, stall_deadline_s=stall_s)


@pytest.fixture
def group() -> Iterator[RankGroup]:
    group = a_group()
    yield group
    group.close()


def test_every_rank_answers_every_request(group: RankGroup) -> None:
    answers = group.request(Command("echo", text="hello"))
    assert [a.result for a in answers] == [
        {"rank": 0, "echo": "hello"},
        {"rank": 1, "echo": "hello"},
    ]
    assert group.starts == 1


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_node_without_a_folder_for_temporary_files_cannot_start_a_group(
    group: RankGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    before = open_files()
    with pytest.raises(RankGroupFailed, match=r"could not be started on .*gone.*TMPDIR"):
        group.ready()
    assert open_files() == before
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert len(group.request(Command("echo"))) == 2


@pytest.mark.parametrize("room", range(8))
def test_a_node_without_file_descriptors_cannot_start_a_group_and_leaves_none_open(
    group: RankGroup, room: int
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before, used = open_files(), {int(name) for name in os.listdir("/proc/self/fd")}
    free = [number for number in range(max(used) + 100) if number not in used]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[room], hard))
        with pytest.raises(RankGroupFailed, match=r"Too many open files"):
            group.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_files() == before
    assert len(group.request(Command("echo"))) == 2


def test_a_rank_that_cannot_answer_ends_at_once(group: RankGroup) -> None:
    with pytest.raises(RankDied, match=r"(?s)exit status 1.*it gives up"):
        group.request(Command("meet beside", then="quits"))
    assert len(group.request(Command("echo"))) == 2


def test_a_message_larger_than_a_socket_buffer_arrives_whole(group: RankGroup) -> None:
    text = "x" * 3_000_000
    assert group.request(Command("echo", text=text))[1].result["echo"] == text


def test_a_rank_that_dies_ends_the_group_and_the_next_request_starts_another(
    group: RankGroup,
) -> None:
    group.request(Command("echo"))
    pids = group.pids()
    with pytest.raises(
        RankDied, match=r"(?s)rank 1 of 2 ended \(signal 9, as where .*\).*the end of a log"
    ):
        group.request(Command("die", rank="1"))
    assert not any(is_running(pid) for pid in pids)
    assert group.request(Command("echo", text="again"))[0].result["echo"] == "again"
    assert group.starts == 2


def test_the_log_lines_of_a_message_hold_no_secret_even_where_they_begin_in_one() -> None:
    """Ranks log long addresses, of which little is left: the beginning of what is read is cut."""
    line = "https://h/a.mp4?X-Amz-Signature=" + 300 * "s3cret" + " is away\n"
    rest = (LOG_READ // len(line)) * line + "x" * (LOG_TAIL - 60)
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(["true"]) as process,
        socket.socket() as channel,
    ):
        log.write(f"{line}{rest}".encode())
        lines = Rank(process, channel, log).last_log_lines()
    assert lines.startswith("https://h/a.mp4?X-Amz-Signature=*** is away\n")
    assert "cre" not in lines
    assert lines.endswith("x" * (LOG_TAIL - 60))
    assert len(lines) <= LOG_TAIL


def test_ranks_without_progress_are_killed_and_the_last_of_it_is_named() -> None:
    group = a_group(stall_s=0.5)
    group.request(Command("echo"))
    pids = group.pids()
    with pytest.raises(DeadlinePassed, match=r"no progress for 0\.5 s; the last was step 2 of 9"):
        group.request(Command("steps", text="2", then="hang", rank="1", others="hang"))
    assert not any(is_running(pid) for pid in pids)
    with pytest.raises(DeadlinePassed, match="the last was the start of the request"):
        group.request(Command("hang", rank="1"))
    group.close()


def test_a_stopped_rank_holds_no_message_up_and_ends_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.ranks.conversation.CLOSE_S", 0.2)
    group = a_group(stall_s=0.5)
    group.request(Command("echo"))
    os.kill(group.pids()[1], signal.SIGSTOP)
    with pytest.raises(DeadlinePassed, match=r"no progress for 0\.5 s"):
        group.request(Command("echo", text="x" * 3_000_000))
    assert len(group.request(Command("echo"))) == 2
    group.close()


def test_a_rank_that_reports_progress_may_take_longer_than_the_deadline() -> None:
    group = a_group(stall_s=0.8)
    began = time.monotonic()
    command = Command("last", text="1.5", rank="1", others="echo")
    assert len(group.request(command)) == 2
    assert time.monotonic() - began > 1.5
    group.close()


def test_time_without_a_request_is_no_stall() -> None:
    group = a_group(1, stall_s=0.2)
    group.request(Command("echo"))
    assert not group._conversation.ended
    threading.Event().wait(0.5)
    group.request(Command("echo"))
    assert group.starts == 1
    group.close()


@pytest.mark.parametrize(
    ("op", "ranks", "code", "text"),
    [
        ("row error", 2, "video_too_short", "has 2 frames"),
        ("bug", 1, "internal", "KeyError: 'surprise'"),
        ("memory", 1, "out_of_memory", "no more"),
        ("full GPU", 1, "out_of_memory", "AcceleratorError: CUDA error"),
        ("full disk", 1, "storage", "No space left on device"),
        ("no bucket", 1, "storage", "EndpointConnectionError: could not connect"),
    ],
)
def test_an_error_of_a_row_is_an_answer_and_the_ranks_live_on(
    op: str, ranks: int, code: str, text: str
) -> None:
    group = a_group(ranks)
    answer = group.request(Command(op))[0]
    assert answer.error_code == code
    assert text in answer.error
    group.request(Command("echo"))
    assert group.starts == 1
    group.close()


@pytest.mark.parametrize(
    ("op", "ranks", "code"),
    [
        ("illegal access", 1, "internal"),
        ("library", 1, "internal"),
        ("bug", 2, "internal"),
        ("full disk", 2, "storage"),
        ("memory", 2, "out_of_memory"),
    ],
)
def test_ranks_that_need_a_restart_are_ended_and_the_next_request_is_not_charged_for_it(
    op: str, ranks: int, code: str
) -> None:
    group = a_group(ranks)
    group.start()
    pids = group.pids()
    assert group.request(Command(op))[0].error_code == code
    assert not any(is_running(pid) for pid in pids)
    assert len(group.request(Command("echo"))) == ranks
    assert group.starts == 2
    group.close()


@pytest.mark.parametrize(("agree_s", "stall_s"), [(0.5, 30), (30, 1.0)])
def test_the_error_of_one_rank_is_the_answer_where_the_others_wait_for_it(
    monkeypatch: pytest.MonkeyPatch, agree_s: float, stall_s: float
) -> None:
    monkeypatch.setattr("cluster.ranks.conversation.AGREE_S", agree_s)
    group = a_group(stall_s=stall_s)
    group.start()
    began = time.monotonic()
    (answer,) = group.request(Command("row error", others="hang", rank="1"))
    assert time.monotonic() - began < 15
    assert answer.error_code == "video_too_short"
    assert group.pids() == []
    assert len(group.request(Command("echo"))) == 2
    group.close()


def test_a_rank_that_cannot_work_says_why() -> None:
    group = a_group(refuse="no such checkpoint")
    with pytest.raises(GroupCannotStart, match="no such checkpoint"):
        group.start()
    assert group.pids() == []


def test_a_group_that_could_not_start_does_so_for_the_next_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"  # beside this file no rank starts
    monkeypatch.setenv("REFUSE_BESIDE", str(closed))
    group = a_group(1)
    closed.touch()
    with pytest.raises(GroupCannotStart):
        group.request(Command("echo"))
    closed.unlink()
    group.request(Command("echo"))
    assert group.starts == 2
    group.close()


def test_a_start_that_takes_too_long_is_ended() -> None:
    group = RankGroup(
        COMMAND,
        1,
        Start("edits", {"hang": True}, "cpu"),
        start_deadline_s=1.5,
        stall_deadline_s=60,
    )
    with pytest.raises(DeadlinePassed, match=r"rank 0 of 1 was not ready within 1\.5 s"):
        group.start()
    assert group.pids() == []


def test_ranks_end_with_their_owner_even_when_it_is_killed() -> None:
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import time; from tests.cluster.ranks.test_owner import a_group\n"
            "group = a_group(); group.start(); print(*group.pids(), flush=True)\n"
            "time.sleep(3600)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout
    pids = [int(pid) for pid in owner.stdout.readline().split()]
    assert len(pids) == 2
    assert all(is_running(pid) for pid in pids)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    until = time.monotonic() + 20
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < until, "ranks outlived their owner"
        os.sched_yield()


def test_a_rank_that_died_between_two_requests_is_told_from_a_broken_socket(
    group: RankGroup,
) -> None:
    group.request(Command("echo"))
    group.ready().ranks[0].process.kill()
    group.ready().ranks[0].process.wait()
    with pytest.raises(RankDied, match=r"rank 0 of 2 ended \(signal 9, "):
        group.request(Command("echo"))
    assert len(group.request(Command("echo"))) == 2


@pytest.mark.parametrize("code", [0, 7])
def test_an_exit_status_is_named(group: RankGroup, code: int) -> None:
    with pytest.raises(RankDied, match=f"exit status {code}"):
        group.request(Command("exit", text=str(code)))
