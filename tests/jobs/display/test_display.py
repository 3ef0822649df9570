"""What a person sees of a run: its phases, its rate, and what failed."""

import io
import os
import pty
import re
import subprocess
import sys
import threading
from dataclasses import replace
from subprocess import PIPE
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from cluster.progress import Counts, Failure, Groups
from jobs.display import (
    Progress,
    Ticker,
    duration,
    failed_lines,
    per_time,
    show_end,
    ticker,
)
from jobs.display.ticker import LINE_EVERY_S
from jobs.errors import counted
from jobs.status import state
from jobs.status.phases import phase_of
from jobs.status.rate import Rate
from jobs.status.state import RunState

READY = tuple(Groups(stage, 1, 1) for stage in ("prompts", "inversion", "reconstruction"))
"""Every group of a small job has loaded what it needs."""


class Lines(io.StringIO):
    """A file that tells when so many lines were written to it."""

    def __init__(self, wanted: int) -> None:
        super().__init__()
        self.wanted, self.reached = wanted, threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        if self.getvalue().count("\n") >= self.wanted:
            self.reached.set()
        return written


class Clock:
    """The time, as a test sets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in (ticker, state):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def plain(out: io.StringIO, edits: int = 10, videos: int = 10) -> Progress:
    """Progress where there is no terminal."""
    progress = Progress(Console(file=out, width=60))
    progress.state.put(edits=edits, videos=videos)
    return progress


def loaded(ready: int) -> tuple[Groups, ...]:
    return tuple(replace(one, ready=int(place < ready)) for place, one in enumerate(READY))


def test_a_caller_that_is_stuck_has_a_line_every_so_often_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert LINE_EVERY_S <= 25
    monkeypatch.setattr(ticker, "LINE_EVERY_S", 0.01)
    out = Lines(wanted=5)
    with plain(out) as progress:
        progress.phase("starting Ray")
        assert out.reached.wait(30), "the stage that does not come back is silent"
    after = out.getvalue()
    assert set(after.splitlines()) == {"starting Ray"}
    assert not [t for t in threading.enumerate() if t is progress._lines], "it went on"


def test_a_caller_that_is_stuck_has_a_line_that_moves_on_a_terminal() -> None:
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as file, os.fdopen(reader, "rb", buffering=0) as terminal:
        console = Console(file=file, force_terminal=True, width=80)
        with Ticker(console) as ticker:
            ticker.phase("starting Ray")
            seen, pictures = b"", set()
            while len(pictures) < 3:  # of the spinner
                seen += terminal.read(1000)
                pictures = set(re.findall("([⠀-⣿]) starting Ray", seen.decode(errors="ignore")))


def test_a_line_that_stays_says_for_how_long(clock: Clock) -> None:
    ticker = Ticker(Console(file=io.StringIO()))
    ticker("loading: 1 of 3 groups")
    clock.now += 4
    assert ticker.line() == "loading: 1 of 3 groups"
    clock.now += 86
    assert ticker.line() == "loading: 1 of 3 groups (for 1 min 30 s)"
    ticker("loading: 2 of 3 groups")
    assert ticker.line() == "loading: 2 of 3 groups"


@pytest.mark.parametrize(
    ("counts", "phase"),
    [
        (Counts(groups=loaded(0)), "loading"),
        (Counts(groups=loaded(2), prompts=4, inverted=1), "loading"),
        (Counts(groups=READY), "encoding prompts"),
        (Counts(groups=READY, prompts=4), "inverting"),
        (Counts(groups=READY, prompts=4, failed=2), "inverting"),
        (Counts(groups=READY, failed=2), "inverting"),
        (Counts(groups=READY, prompts=4, inverted=1), "editing"),
        (Counts(groups=loaded(2), edited=1), "editing"),
    ],
)
def test_the_phase_is_what_the_events_say(counts: Counts, phase: str) -> None:
    assert phase_of(counts) == phase


def test_each_phase_has_its_line_at_once_without_a_terminal(clock: Clock) -> None:
    out = io.StringIO()
    with plain(out) as progress:
        progress.phase("starting Ray")
        for counts in (
            Counts(groups=loaded(0)),
            Counts(groups=loaded(1)),
            Counts(groups=READY),
            Counts(groups=READY, prompts=1),
            Counts(groups=READY, prompts=1, failed=1),
            Counts(groups=READY, prompts=1, failed=1, inverted=1),
            Counts(groups=READY, prompts=1, failed=1, inverted=2, edited=4),
        ):
            progress.show(counts)
    assert out.getvalue().splitlines() == [
        "starting Ray",
        "loading: 0 of 3 groups, waiting for prompts and inversion and reconstruction",
        "encoding prompts: for 10 edits",
        "inverting: 1 prompt encoded, for 10 edits",
        "editing: 0 of 10 edits, 1 failed, 1 video inverted",
    ]
    assert progress.line() == "editing: 4 of 10 edits, 1 failed, 2 videos inverted"
    assert "\x1b" not in out.getvalue()


def test_what_a_job_leaves_idle_is_shown_once(clock: Clock) -> None:
    out = io.StringIO()
    notes = ("2 GPUs of node [n1] stay idle: a group takes 3",)
    with plain(out) as progress:
        for ready in (0, 1, 2):
            progress.show(Counts(notes=notes, groups=loaded(ready)))
    first, second, *rest = out.getvalue().splitlines()
    assert (first, rest) == (f"note: {notes[0]}", [])
    assert second.startswith("loading: 0 of 3 groups")


def test_several_groups_of_a_stage_are_counted(clock: Clock) -> None:
    progress = plain(io.StringIO())
    progress.show(Counts(groups=(Groups("prompts", 1, 1), Groups("inversion", 5, 8))))
    assert progress.line() == "loading: 6 of 9 groups, waiting for inversion 5 of 8"


def test_a_run_shows_its_rate_and_what_is_left_once_both_are_known(clock: Clock) -> None:
    progress = plain(io.StringIO(), 400, videos=100)
    counts = Counts(groups=READY, prompts=9, inverted=1)
    progress.show(counts)
    clock.now += 60
    progress.show(replace(counts, edited=2))
    assert progress.line() == "editing: 2 of 400 edits, 1 video inverted"
    clock.now += 60
    progress.show(replace(counts, edited=4))
    assert progress.line() == "editing: 4 of 400 edits, 1 video inverted, 2.0 edits/min"
    clock.now += 120
    progress.show(replace(counts, edited=8))
    assert progress.line() == (
        "editing: 8 of 400 edits, 1 video inverted, 2.0 edits/min, about 3 h 16 min left"
    )
    progress.show(replace(counts, edited=304, failed=96))
    assert " left" not in progress.line()


def left_s(clock: Clock, edits: int, videos: int, groups: int, *arrivals: Any) -> float | None:
    """Seconds left, after results have come: (seconds, made, failed at groups, refused) each."""
    run = RunState()
    run.put(edits=edits, videos=videos)
    pool = (Groups("editing", groups, groups),)
    run.take(Counts(groups=pool, inverted=1))
    for seconds, made, failed, refused in arrivals:
        clock.now += seconds
        run.take(
            Counts((), pool, inverted=1, edited=made, failed=failed + refused, refused=refused)
        )
    return run.status().left_s


def test_time_left_is_not_known_from_the_first_burst(clock: Clock) -> None:
    """Eight groups give their first four edits within seconds: nobody knows when they do again."""
    burst = [(180 if place == 0 else 4, 4 * place + 4, 0, 0) for place in range(8)]
    assert left_s(clock, 320, 80, 8, *burst) is None
    assert left_s(clock, 320, 80, 8, *burst, (172, 36, 0, 0)) == pytest.approx(
        284 / (36 / 380), rel=0.01
    )


def test_edits_that_fail_at_groups_take_their_time(clock: Clock) -> None:
    """Half of them fail as late as others are made: the rest takes as long as it would else."""
    assert left_s(clock, 100, 100, 1, *((10, n, n - 1, 0) for n in range(1, 11))) == pytest.approx(
        81 * 100 / 19, rel=0.01
    )


def test_edits_that_the_check_refuses_take_no_time(clock: Clock) -> None:
    refused = [(10, n, 0, 50) for n in range(1, 11)]
    assert left_s(clock, 100, 100, 1, *refused) == pytest.approx(40 * 10, rel=0.01)


def test_time_left_grows_while_a_row_is_tried_again(clock: Clock) -> None:
    steady = [(10, n, 0, 0) for n in range(1, 11)]
    first = left_s(clock, 100, 100, 1, *steady)
    later = left_s(clock, 100, 100, 1, *steady, (300, 10, 0, 0))
    assert first is not None
    assert later is not None
    assert later > 2 * first


def rate_of(*arrivals: tuple[float, int]) -> Rate:
    rate = Rate()
    rate.count(0.0, 0)
    for now, edits in arrivals:
        rate.count(now, edits)
    return rate


@pytest.mark.parametrize(
    ("arrivals", "now", "per_min"),
    [
        ([], 500, None),
        ([(60, 2)], 60, None),
        ([(60, 4)], 60, 4.0),
        # Failures: time goes by and no edit comes.
        ([(60, 4)], 119, 4.0),
        ([(60, 4)], 300, 1.0),
        # The first hour was slow, the last minutes are not.
        ([(3600, 4), *((3600 + 10 * i, 4 + i) for i in range(1, 61))], 4200, 6.0),
        # The first minute was quick, the last minutes are not.
        ([(60, 100), *((60 + 60 * i, 100 + i) for i in range(1, 11))], 660, 1.0),
        # Bursts of eight groups with four edits each, ten minutes apart, seen at their end,
        ([(600 * i + j, 32 * i - 28 + 4 * j) for i in (1, 2, 3) for j in range(8)], 1807, 3.2),
        # and between two of them.
        ([(600 * i + j, 32 * i - 28 + 4 * j) for i in (1, 2, 3) for j in range(8)], 2300, 3.2),
    ],
)
def test_the_rate_is_that_of_the_last_edits(
    arrivals: list[tuple[float, int]], now: float, per_min: float | None
) -> None:
    found = rate_of(*arrivals).per_s(now)
    assert (found and 60 * found) == (per_min and pytest.approx(per_min, rel=0.02))


def test_a_rate_keeps_only_what_it_needs() -> None:
    rate = rate_of(*((float(i), i) for i in range(1, 5000)))
    assert len(rate.arrivals) < 310


def a_failure(code: str, number: int) -> Failure:
    return Failure(f"v{number}", "red", code, f"{code} it is")


LATE = a_failure("deadline", 1)


def test_the_first_failures_are_named_and_the_others_counted_by_their_code() -> None:
    failures = [a_failure("video_not_found", i) for i in range(5)] + [a_failure("deadline", 9)]
    lines = failed_lines({"video_not_found": 16, "deadline": 1}, failures)
    assert lines == [
        "v9/red  deadline  deadline it is",
        *(f"v{i}/red  video_not_found  video_not_found it is" for i in range(4)),
        "12 more with video_not_found",
    ]


def test_each_code_is_named_before_any_is_twice() -> None:
    codes = ["bad_uri", "deadline", "internal", "no_edits", "storage", "video_empty"]
    failures = [a_failure(code, i) for code in codes for i in range(3)]
    lines = failed_lines(dict.fromkeys(codes, 3), failures)
    assert lines[:2] == ["v0/red  bad_uri  bad_uri it is", "2 more with bad_uri"]
    assert lines[-1] == "3 with video_empty"
    assert len(lines) == 11


def test_a_failure_without_names_and_with_a_long_message_stays_a_line() -> None:
    (line,) = failed_lines({"no_edits": 1}, [Failure(None, None, "no_edits", "x" * 900)])
    assert line.startswith("a row without an id  no_edits  xxx")
    assert len(line) < 250


@pytest.mark.parametrize(
    ("counts", "before", "parts", "absent"),
    [
        (None, 10, ["nothing is pending"], ["edits done", "failed"]),
        (Counts(edited=10), 0, ["edits done       10"], ["done before", "failed:"]),
        (
            Counts(edited=6, failed=1, errors={"deadline": 1}, failures=(LATE,)),
            3,
            ["done before      3", "  v1/red  deadline  deadline it is", "docs/guide.md"],
            [],
        ),
    ],
)
def test_the_end_says_what_failed_where_to_look_and_what_to_do_next(
    counts: Counts | None, before: int, parts: list[str], absent: list[str]
) -> None:
    out = io.StringIO()
    prepared: Any = SimpleNamespace(
        scan=SimpleNamespace(edits=10),
        job=SimpleNamespace(editing=SimpleNamespace(output="/data/my [out]")),
    )
    todo: Any = SimpleNamespace(edits=10 - before, before=before, quarantined=0)
    show_end(counts, prepared, todo, False, 65, Console(file=out, width=60))
    text = out.getvalue()
    for part in [*parts, "time", "1 min 5 s", "results  /data/my [out]/results/"]:
        assert part in text
    for part in absent:
        assert part not in text
    assert text.splitlines()[-1] == "gallery  retake report '/data/my [out]'"


@pytest.mark.parametrize(("number", "text"), [(0, "0 edits"), (1, "1 edit"), (2, "2 edits")])
def test_one_is_one(number: int, text: str) -> None:
    assert counted(number, "edit") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (18_720, "5 h 12 min"), (273_600, "3 d 4 h")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(2.0, "2.0 edits/s"), (0.05, "3.0 edits/min"), (0.001, "3.6 edits/h"), (1e-4, "8.6 edits/d")],
)
def test_rates_are_readable(rate: float, text: str) -> None:
    assert per_time(rate) == text


@pytest.mark.parametrize("broken", ["a full disk", "a reader that has gone"])
def test_output_that_cannot_be_written_ends_no_run(broken: str) -> None:
    """Its status is that of the work, and all lines are tried."""
    code = (
        "from jobs.display import Progress, console_of_a_run\n"
        "console = console_of_a_run()\n"
        "with Progress(console) as progress:\n"
        "    for number in range(2000):\n"
        "        progress.phase(f'phase {number}')\n"
        "import sys, os\n"
        "print('all', file=sys.stderr)\n"
        "os._exit(7)\n"
    )
    if broken == "a full disk":
        with open("/dev/full", "w") as full:
            out: Any = full.fileno()
            done = subprocess.run(
                [sys.executable, "-c", code], check=False, stdout=out, stderr=PIPE, text=True
            )
    else:
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [sys.executable, "-c", code.replace("os._exit(7)", "sys.exit(7)")],
            check=False,
            stdout=write,
            stderr=PIPE,
            text=True,
        )
        os.close(write)
    assert (done.returncode, done.stderr) == (7, "all\n")
