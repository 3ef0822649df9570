"""The tries of a request, on record where no death reaches them."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cluster.output.attempts import (
    ATTEMPTS,
    NOT_SEEN,
    Attempts,
    History,
    digest,
    forgive,
    remove_scratch,
    settle,
)
from pipeline.errors import ErrorCode
from pipeline.storage import Folder


@pytest.fixture(params=["local", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(str(tmp_path) if request.param == "local" else f"memory://{tmp_path}")


def begun(output: Folder, request: str = "q", run: str = "r") -> History:
    """A request that is asked now, for all that storage says."""
    history = Attempts(output, run).of(request)
    history.begin()
    return history


def of(output: Folder, request: str = "q", run: str = "r") -> History:
    return Attempts(output, run).of(request)


def states(output: Folder) -> list[str]:
    return sorted(name.rpartition(".")[2] for name in output.list())


def test_nothing_is_left_of_a_request_that_was_answered(output: Folder) -> None:
    history = begun(output)
    assert states(output) == ["beside"]
    history.failed(ErrorCode.RANK_DIED, "signal 9", charged=True)
    history.begin()
    assert states(output) == ["alone", "charged"]
    history.answered()
    assert output.list() == []
    if output.is_local:
        assert list(Path(output.path("attempts")).iterdir()) == []


def test_a_try_that_another_request_may_have_ended_is_not_counted_and_the_next_goes_alone(
    output: Folder,
) -> None:
    history = begun(output)
    history.failed(ErrorCode.RANK_DIED, "signal 9", charged=False)
    assert (output.list(), history.alone, history.charged) == ([], True, [])


def test_a_failure_before_a_try_began_is_none(output: Folder) -> None:
    history = of(output)
    history.failed(ErrorCode.RANK_DIED, "signal 9", charged=True)
    assert (history.charged, history.alone, output.list()) == ([], False, [])


def test_a_request_whose_owners_die_is_charged_from_its_second_try_on(output: Folder) -> None:
    """The first was perhaps beside another; from then on it goes alone."""
    begun(output)
    for charged in range(3):
        history = of(output)
        assert (len(history.charged), history.alone) == (charged, True)
        assert history.takes_its_owner_along
        history.begin()  # and its owner dies
    history = of(output)
    assert [(one.ending, one.code) for one in history.charged] == [
        (NOT_SEEN, ErrorCode.RANK_DIED)
    ] * 3
    again = of(output)
    assert len(again.charged) == 3, "a left try was counted twice"


def test_what_is_known_of_each_try_stands_in_the_text(
    output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "worker-7")
    begun(output)
    of(output, run="20261128").begin()
    history = of(output, run="20261128")
    history.begin()
    history.failed(ErrorCode.DEADLINE, "no progress for 9 s\nand its log", charged=True)
    first, *lines = history.text().split("\n")
    assert first == "no progress for 9 s"
    assert lines[0] == "and its log (tried 2 times; --retry-quarantined tries it again)"
    assert NOT_SEEN in lines[2]
    assert lines[3].endswith("run 20261128, node worker-7: no progress for 9 s")
    assert history.charged[-1].at.endswith("+00:00")
    assert of(output, run="next").text() == history.text(), "the next run knows it all"


def test_a_record_holds_no_secret(output: Folder) -> None:
    history = begun(output)
    ending = "no s3://u:hunter2@b/a.mp4?X-Amz-Signature=s3cret"
    history.failed(ErrorCode.RANK_DIED, ending, charged=True)
    (name,) = output.list("attempts")
    stored = output.read(name).decode()
    assert "no s3://***@b/a.mp4?X-Amz-Signature=***" in stored
    assert "hunter2" not in stored and "s3cret" not in stored
    assert history.charged == of(output).charged


@pytest.mark.parametrize(
    ("left", "stopped", "charged"),
    [(["a"], [], ["a"]), (["a", "b"], [], []), (["a"], ["r"], []), ([], [], [])],
)
def test_a_run_that_died_charges_a_request_only_where_it_left_a_single_one(
    output: Folder, left: list[str], stopped: list[str], charged: list[str]
) -> None:
    for name in left:
        begun(output, name)
    assert settle(output, "next", stopped=stopped) == charged
    for name in left:
        history = of(output, name, "next")
        assert len(history.charged) == (name in charged)
        assert history.alone
        assert history.takes_its_owner_along
    assert settle(output, "third") == [], "it was judged once"


def test_runs_are_judged_one_by_one_and_the_one_that_begins_is_not(output: Folder) -> None:
    for run, name in [("r1", "a"), ("r2", "b"), ("r2", "c"), ("r3", "d"), ("r3", "d")]:
        begun(output, name, run)
    begun(output, "e", "now")
    assert sorted(settle(output, "now")) == ["a", "d"]
    assert len(of(output, "d", "now").charged) == 1
    assert "beside" in states(output)


def test_a_run_that_gives_another_chance_knows_of_no_try(output: Folder) -> None:
    begun(output).failed(ErrorCode.RANK_DIED, "signal 9", charged=True)
    begun(output, "b")
    settle(output, "next", forget=True)
    assert output.list() == []


def test_what_the_driver_itself_ended_is_not_charged(output: Folder) -> None:
    begun(output, "a")
    begun(output, "b").failed(ErrorCode.RANK_DIED, "signal 9", charged=True)
    of(output, "b").begin()
    begun(output, "c", "other")
    forgive(output, "r")
    assert states(output) == ["beside", "charged"]
    assert not of(output, "a").alone
    assert len(of(output, "b").charged) == 1


def broken(*_: Any, **__: Any) -> Any:
    raise PermissionError("may not")


@pytest.mark.parametrize("operation", ["write", "read", "list", "remove"])
def test_no_failure_of_storage_gets_out_and_what_was_seen_here_counts(
    output: Folder, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    begun(output)
    of(output).begin()
    monkeypatch.setattr(Folder, operation, broken)
    history = of(output)
    before = len(history.charged)
    history.begin()
    history.failed(ErrorCode.RANK_DIED, "signal 9", charged=True)
    assert len(history.charged) == before + 1
    assert history.alone
    history.answered()
    settle(output, "next")
    forgive(output, "r")


def test_a_record_that_is_cut_short_still_tells_of_a_try(output: Folder) -> None:
    history = begun(output)
    history.failed(ErrorCode.DEADLINE, "late", charged=True)
    (name,) = output.list()
    output.write(name, b'{"run": ')
    (one,) = of(output).charged
    assert (one.run, one.ending) == ("r", NOT_SEEN)


def test_a_killed_owner_that_had_half_counted_a_try_counts_it_once(
    output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = begun(output)
    with monkeypatch.context() as killed:
        killed.setattr(Folder, "remove", broken)
        history.failed(ErrorCode.DEADLINE, "late", charged=True)
    assert states(output) == ["beside", "charged"]
    assert len(of(output).charged) == 1


@pytest.mark.parametrize(
    ("one", "other"), [(("a", {"x": 1}), ("a", {"x": 2})), (("a", "b"), ("b", "a"))]
)
def test_requests_that_differ_have_records_of_their_own(one: Any, other: Any) -> None:
    assert digest(*one) == digest(*one)
    assert digest(*one) != digest(*other)


def test_the_names_of_records_are_short_whatever_the_video_is_called(
    output: Folder, tmp_path: Path
) -> None:
    make: Callable[..., History] = Attempts(output, "20261128T045305.123456").of
    history = make(digest("x" * 5000), "a\nvideo")
    history.begin()
    (name,) = output.list()
    assert len(name) < 120
    assert make(digest("x" * 5000)).suspect


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full disk")
def test_a_failure_of_storage_harms_nothing_where_the_log_takes_no_text_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ATTEMPTS).write_text("a file in the place of the folder")
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        history = Attempts(Folder(str(tmp_path)), "r1").of("00")
        history.begin()
        history.failed(ErrorCode.RANK_DIED, "it died", charged=True)
        monkeypatch.undo()
        with suppress(OSError):
            full.close()
    assert len(history.charged) == 1


def test_what_a_killed_owner_left_half_written_goes_and_records_stay(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    record, half = f"{ATTEMPTS}/a/r-1.beside", f"{ATTEMPTS}/b/.r-2.beside.0a1b2c3d"
    for name in (record, half):
        output.write(name, b"{}")
    remove_scratch(output)
    assert output.list(ATTEMPTS) == [record]
    assert output.list(ATTEMPTS, scratch=True) == []
    assert not (tmp_path / ATTEMPTS / "b").exists()
