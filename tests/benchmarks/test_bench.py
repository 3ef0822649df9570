"""`make bench`: one process for each benchmark, one JSON, one table, and the pages that show it."""

import fcntl
import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as bench
from tests.benchmarks import pages
from tests.benchmarks import record as record_of
from tests.benchmarks.figures import Figure, Measured, as_table, shown, without_time
from tests.benchmarks.programs import BENCHMARKS, SEPARATE, Program
from tests.benchmarks.record import Record, read

ROOT = Path(__file__).parents[2]
GOOD = """
from tests.benchmarks.figures import *
figures = [Figure("speed", 2.0, "x", "ratio", at_least=1.5), Figure("calls", 3, "", "counted")]
run(lambda given: Measured(figures, {"rows": "| a |"}), __doc__)
"""
STAYS = """
import fcntl, os, threading
file = open({lock!r}, "a")
fcntl.flock(file, fcntl.LOCK_EX)
if not os.fork():
    threading.Event().wait()
"""
SLOW = GOOD.replace("2.0", "1.0")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of benchmarks that `make bench` finds: those whose files a test writes there."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    known = tuple(Program(f"bench_{name}.program", "tries", 1) for name in ("good", "bad"))
    monkeypatch.setattr(bench, "BENCHMARKS", known)
    monkeypatch.setattr(pages, "BENCHMARKS", known)
    return tmp_path


def write(programs: Path, name: str, text: str) -> None:
    folder = programs / f"bench_{name}"
    folder.mkdir(exist_ok=True)
    (folder / "program.py").write_text(text)


def test_every_figure_comes_to_one_json_and_one_table(programs: Path) -> None:
    write(programs, "good", GOOD)
    assert bench.main(["--only", "bench_good.program", "--to", str(programs / "to")]) == 0
    (record,) = read(programs / "to" / "bench.json")
    assert record.measured == Measured(
        [Figure("speed", 2.0, "x", "ratio", at_least=1.5), Figure("calls", 3, "", "counted")],
        {"rows": "| a |"},
    )
    assert record.command == "python -m bench_good.program"
    assert {"retake", "python", "torch", "ray"} <= set(record.versions)
    table = (programs / "to" / "bench.md").read_text()
    assert "| speed | 2.00x | ≥ 1.5 | yes | ratio |" in table
    assert record.date in table
    assert record.machine in table


def test_a_missed_target_is_an_exit_status_of_1_and_the_next_benchmark_runs(
    programs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(programs, "good", SLOW)
    write(programs, "bad", "raise SystemExit('no such thing')")
    assert bench.main(["--to", str(programs / "to")]) == 1
    said = capsys.readouterr().err
    assert "missed: bench_good.program: speed" in said
    assert "failed: bench_bad.program: printed no figures (JSONDecodeError), exit status 1" in said
    assert [bool(r.error) for r in read(programs / "to" / "bench.json")] == [False, True]
    assert "**Failed: printed no figures" in (programs / "to" / "bench.md").read_text()


def test_a_benchmark_that_runs_again_leaves_the_others_as_they_are(programs: Path) -> None:
    write(programs, "good", GOOD)
    write(programs, "bad", GOOD)
    to = programs / "to"
    bench.main(["--to", str(to)])
    before = read(to / "bench.json")
    write(programs, "bad", SLOW)
    assert bench.main(["--only", "bench_bad.program", "--to", str(to)]) == 1
    good, bad = read(to / "bench.json")
    assert good == before[0]
    assert [f.value for f in bad.measured.figures] == [1.0, 3]


def test_a_quick_run_judges_only_what_is_counted(programs: Path) -> None:
    write(programs, "good", SLOW)
    arguments = ["--quick", "--only", "bench_good.program"]
    assert bench.main(arguments) == 0
    timed = Figure("a", 1, "s", "timed", at_most=0.5)
    counted = replace(timed, basis="counted")
    assert (without_time(timed).met, without_time(counted).met) == (None, False)


def test_a_benchmark_without_end_is_ended_with_all_that_it_started(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = programs / "lock"
    write(programs, "good", STAYS.format(lock=str(lock)))
    monkeypatch.setattr(bench, "PATIENCE", 0.02)
    record = bench.run(Program("bench_good.program", "tries", 1), quick=False)
    assert record.error == "not over after 1 s"
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # waits for the end of the process that holds it


def test_a_program_alone_prints_nothing_but_its_json(programs: Path) -> None:
    write(programs, "good", SLOW)
    done = subprocess.run(
        [sys.executable, "-m", "bench_good.program"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["figures"]["speed"]["met"] is False


@pytest.mark.parametrize("program", [*BENCHMARKS, *SEPARATE], ids=lambda program: program.name)
def test_what_make_bench_runs_or_names_is_there(program: Program) -> None:
    assert find_spec(program.module)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.554, "x", "1.55x"),
        (12.0, "x", "12x"),
        (0.0123, "s", "0.0123 s"),
        (0, "", "0"),
        (117, "forwards", "117 forwards"),
        (1234567.8, "rows/s", "1,234,568 rows/s"),
        (99.49, "%", "99.5%"),
        (151.2, "dB", "151 dB"),
    ],
)
def test_a_value_is_shown_with_its_unit_in_three_digits(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


def test_a_table_says_what_missed_its_target() -> None:
    missed = Figure("a", 2.0, "s", "timed", at_most=1.0, note="of all")
    assert as_table([missed]).splitlines()[-1] == "| a (of all) | 2 s | ≤ 1 | **no** | timed |"


@pytest.mark.parametrize("name", pages.PAGES)
def test_the_tables_of_a_page_are_those_of_the_last_run(name: str) -> None:
    page = (ROOT / name).read_text()
    assert page == pages.filled_in(page, read(pages.RESULTS / "bench.json"))


def test_a_page_gets_what_it_asks_for() -> None:
    record = Record.started("cost", "tests.benchmarks.cost", quick=False)
    record = replace(
        record,
        measured=Measured([Figure("4 edits", 1.6, "x", "ratio", at_least=1.5)], {"rates": "| t |"}),
    )
    filled = pages.filled_in(
        "".join(f"<!-- bench: {what} -->\nold\n<!-- end -->\n" for what in
                ("targets", "cost", "cost.rates")), [record],
    )  # fmt: skip
    assert "old" not in filled
    assert "| 4 edits | 1.60x | ≥ 1.5 | yes | `python -m tests.benchmarks.cost` |" in filled
    assert "| 4 edits | 1.60x | ≥ 1.5 | yes | ratio |" in filled
    assert f"| t |\n\n`python -m tests.benchmarks.cost`, 0 s. {record.date}" in filled
    assert pages.filled_in(filled, [record]) == filled


def test_the_command_writes_the_tables_into_the_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "PAGES", ("page.md",))
    (tmp_path / "page.md").write_text("a\n<!-- bench: programs -->\n<!-- end -->\nb\n")
    assert bench.main(["--tables"]) == 0
    table = pages.programs_table(BENCHMARKS)
    wanted = f"a\n<!-- bench: programs -->\n\n{table}\n\n<!-- end -->\nb\n"
    assert (tmp_path / "page.md").read_text() == wanted


@pytest.mark.soak
@pytest.mark.parametrize("program", BENCHMARKS, ids=lambda program: program.name)
def test_a_benchmark_runs_in_small_sizes(program: Program) -> None:
    record = bench.run(program, quick=True)
    assert not record.error
    assert record.measured.figures
    assert record.measured.missed == []


def test_what_runs_already_is_looked_at_when_a_benchmark_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_of, "STATISTICS", tmp_path / "stat")
    assert Record.started("cost", "m", quick=False).load == 0  # not known
    for others, said in ((0, False), (2, True)):
        (tmp_path / "stat").write_text(f"cpu 1 2 3\nprocs_running {others + 1}\n")
        record = Record.started("cost", "m", quick=False)
        assert record.load == others
        assert ("2 processes running already" in record.when_and_where) is said


def test_what_was_not_measured_is_said_to_be_so_and_what_does_not_exist_is_refused() -> None:
    page = "<!-- bench: {} -->\n<!-- end -->"
    for what in ("cost", "cost.rates", "targets"):
        assert "Not measured yet" in pages.filled_in(page.format(what), [])
    with pytest.raises(pages.NoSuchTable, match="no benchmark 'none'"):
        pages.filled_in(page.format("none"), [])
    with pytest.raises(pages.NoSuchTable, match="cost has no table 'none'"):
        record = Record.started("cost", "m", quick=False)
        pages.filled_in(page.format("cost.none"), [record])
