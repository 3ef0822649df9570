"""The table of a run, as it stands on a terminal."""

import io

import pyte
from rich.console import Console

from cluster.progress import Counts, Failure, Groups
from jobs.display import Progress, SafeConsole, table_of
from jobs.status.record import Stage
from tests.jobs.status.records import a_status

FULL = a_status(
    edits=400,
    videos=100,
    made=120,
    failed=3,
    inverted=34,
    prompts=412,
    stages=(Stage("prompts", 1, 1), Stage("editing", 8, 8, "denoising step 12 of 31")),
    edits_per_s=4.1 / 60,
    left_s=4054.0,
    last_errors=(
        Failure("v1", "blue", "storage", "s3://k:hunter22@host/b is away"),
        Failure("v9", "red", "deadline", "no progress for [600] s " + "x" * 300),
    ),
    notes=("2 GPUs stay idle",),
)


def printed(width: int, **options: bool) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(table_of(FULL, **options))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_the_table_has_stages_edits_rate_and_the_last_errors_first() -> None:
    lines = printed(78)
    assert lines[:6] == [
        "stage    groups ready  last step",
        "prompts  1 of 1",
        "editing  8 of 8        denoising step 12 of 31",
        "edits        120 made, 3 failed, 277 left of 400",
        "so far       412 prompts encoded, 34 videos inverted",
        "rate         4.1 edits/min, about 1 h 7 min left",
    ]
    assert lines[6].startswith("last errors  v9/red  deadline  no progress for [600] s xxx")
    assert lines[7] == "             v1/blue  storage  s3://***@host/b is away"
    assert len(lines) == 8, "a long message stays a line"


def test_from_outside_the_notes_are_shown_too() -> None:
    assert printed(78, notes=True)[-1].split() == ["notes", "2", "GPUs", "stay", "idle"]


def test_on_a_terminal_the_table_changes_in_place_below_the_notes() -> None:
    out, screen = io.StringIO(), pyte.Screen(100, 30)
    console = SafeConsole(file=out, force_terminal=True, width=100, height=30)
    with Progress(console) as progress:
        progress.state.put(edits=10, videos=5)
        for step in (1, 2):
            groups = (Groups("editing", 1, 1, f"inversion step {step} of 31"),)
            progress.show(Counts(("one node is idle",), groups, 4))
            progress._live.refresh()
        pyte.Stream(screen).feed(out.getvalue().replace("\n", "\r\n"))
        lines = [line.rstrip() for line in screen.display if line.strip()]
    assert lines[0] == "note: one node is idle"
    assert lines[1][2:] == "inverting: the first video: inversion step 2 of 31 (for 0 s)"
    assert lines[2:] == [
        "  stage    groups ready  last step",
        "  editing  1 of 1        inversion step 2 of 31",
        "  edits        0 made, 0 failed, 10 left of 10",
        "  so far       4 prompts encoded, 0 videos inverted",
    ]
