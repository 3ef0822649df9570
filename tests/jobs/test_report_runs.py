"""Reports of two runs, and of more edits than a page shows: what their files hold."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cluster.results.schema import SCHEMA, to_parquet
from jobs.cli import app
from jobs.errors import JobError
from jobs.report import write_report
from jobs.report.read import read_rows
from pipeline.errors import Unreadable
from pipeline.storage import Folder
from tests.report_results import (
    NOON,
    make_failed_row,
    make_row,
    make_rows,
    read_cards,
    read_column,
    read_summary,
    report_of,
    write_rows,
)


def two_runs(here: list[dict], there: list[dict], folder: Path) -> str:
    write_rows(str(folder / "b"), there)
    return report_of(here, folder / "a", compare=str(folder / "b"))


@pytest.mark.parametrize(
    ("folder", "job", "title"),
    [
        ("winter", "seed: 0\n", "winter"),
        ("winter/output", "seed: 0\n", "winter/output"),
        ("winter/out", "name: snow-2\n", "snow-2"),
        ("winter/out", "name: 7\n", "winter/out"),
    ],
)
def test_the_title_names_the_job(tmp_path: Path, folder: str, job: str, title: str) -> None:
    Folder(str(tmp_path / folder)).write("job.yaml", job.encode())
    output = report_of([make_row()], tmp_path / folder)
    assert f"<h1>{title}</h1>" in Folder(output).read("report/index.html").decode()


def test_two_runs_are_joined_by_the_ids_of_their_edits(tmp_path: Path) -> None:
    here = [
        make_row("v1", "red", metrics={"flicker": 0.25}),
        make_row("v1", "blue"),
        make_failed_row("not_finite", "no", video_id="v2", edit_id="red"),
    ]
    there = [
        make_row("v2", "red", metrics={"flicker": 0.5}),
        make_row("v1", "red", metrics={"flicker": 1.0}, prompt="another"),
        make_row("v3", "red", prompt="only there"),
    ]
    output = two_runs(here, there, tmp_path)
    cards, summary = read_cards(output), read_summary(output)
    assert [(c["id"], [e["id"] for e in c["edits"]]) for c in cards] == [
        ("v1", ["blue", "red"]),
        ("v2", ["red"]),
        ("v3", ["red"]),
    ]
    assert summary["compare"] == {
        "here": "a",
        "there": "b",
        "both": 2,
        "onlyHere": 1,
        "onlyThere": 1,
    }
    blue, red = cards[0]["edits"]
    assert "there" not in blue
    assert (red["clip"], red["there"]["clip"]) == (
        "../edits/v1/red.mp4",
        "../../b/edits/v1/red.mp4",
    )
    assert red["there"]["prompt"] == "another"
    assert read_column(output, "number:flicker") == [0.5, 0.25, None, None]
    assert read_column(output, "number:difference:flicker") == [None, -0.75, None, None]
    only = cards[2]["edits"][0]
    assert (only["status"], only["clip"], only["there"]["status"]) == ("absent", None, "ok")
    assert (only["prompt"], cards[2]["source"]) == ("only there", "../../b/sources/v3.mp4")
    states = [summary["states"][code][:2] for code in read_column(output, "state")]
    assert states == [["ok", None], ["ok", None], ["failed", "not_finite"], ["absent", None]]
    assert {tuple(row) for row in summary["states"]} == {
        ("ok", None, 2, 2),
        ("failed", "not_finite", 1, 1),
        ("absent", None, 1, 1),
    }
    assert (summary["edits"], summary["videos"]) == (3, 3)


def test_a_number_that_one_run_lacks_has_no_difference(tmp_path: Path) -> None:
    here = [make_row() | {"metrics": make_row()["metrics"] | {"sharpness": 0.3}}]
    output = two_runs(here, [make_row()], tmp_path)
    keys = [metric["key"] for metric in read_summary(output)["metrics"]]
    assert "sharpness" in keys
    assert "difference:sharpness" not in keys
    assert keys.count("difference:flicker") == 1


def test_refused_rows_with_the_same_ids_stay_apart_when_runs_are_compared(tmp_path: Path) -> None:
    nameless = [
        make_failed_row("bad_video_id", "no id", video_id=None, edit_id=None, fingerprint=None)
        | {"video": f"{n}.mp4"}
        for n in range(2)
    ]
    output = two_runs([*nameless, make_row()], [nameless[1]], tmp_path)
    compared = {
        card["video"]: "there" in edit for card in read_cards(output) for edit in card["edits"]
    }
    assert compared == {"0.mp4": False, "1.mp4": True, make_row()["video"]: False}


def test_runs_on_two_storages_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"--compare memory://other: .*same storage"):
        write_report(str(tmp_path), compare="memory://other")


def test_the_other_run_must_have_results(tmp_path: Path) -> None:
    write_rows(str(tmp_path / "a"), [make_row()])
    with pytest.raises(JobError, match=r"b: no rows in results"):
        write_report(str(tmp_path / "a"), compare=str(tmp_path / "b"))


def test_a_sample_shows_whole_videos_and_counts_all(tmp_path: Path) -> None:
    rows = make_rows(videos=100, edits=4)
    output = report_of(rows, tmp_path, sample=50)
    summary, cards = read_summary(output), read_cards(output)
    assert summary["shown"] == {"videos": 12, "edits": 48}
    assert [len(card["edits"]) for card in cards] == [4] * 12
    assert (summary["sampled"], summary["edits"], summary["videos"]) == (True, 400, 100)
    assert {(s, c): n for s, c, n, _ in summary["states"]} == {
        ("ok", None): 384,
        ("failed", "out_of_memory"): 8,
        ("failed", "not_finite"): 8,
    }
    assert sum(shown for *_, shown in summary["states"]) == 48
    (flicker,) = [m for m in summary["metrics"] if m["key"] == "flicker"]
    assert (flicker["count"], sum(flicker["bars"])) == (384, 384)
    assert (flicker["low"], flicker["high"]) == (0.0, 0.0398)
    assert len(read_column(output, "number:flicker")) == 48
    ids = read_column(output, "ids")
    assert [ids["names"][code] for code in ids["edit"]] == [
        edit["id"] for card in cards for edit in card["edits"]
    ]


def test_a_sample_is_the_same_videos_whichever_rows_stand_around_them(tmp_path: Path) -> None:
    rows = make_rows(videos=40, edits=2)
    first = read_cards(report_of(rows, tmp_path / "a", sample=20))
    again = read_cards(report_of(rows[::-1], tmp_path / "b", sample=20))
    assert [card["id"] for card in first] == [card["id"] for card in again]
    assert len(first) == 10


def test_a_video_with_more_edits_than_a_sample_is_shown_in_part(tmp_path: Path) -> None:
    output = report_of([make_row(edit_id=f"e{n}") for n in range(30)], tmp_path, sample=10)
    (card,) = read_cards(output)
    assert len(card["edits"]) == 10
    assert read_summary(output)["edits"] == 30


def test_files_of_cards_stay_small_where_videos_have_many_edits(tmp_path: Path) -> None:
    rows = [make_row(f"v{video}", f"e{edit}") for video in range(5) for edit in range(400)]
    summary = read_summary(report_of(rows, tmp_path))
    assert summary["firsts"] == [0, 2, 4]
    assert len(summary["cards"]) == 3


def test_rows_without_any_number_make_a_report(tmp_path: Path) -> None:
    row = make_failed_row("no_edits", "none", edit_id=None, forwards=None, timings=None)
    summary = read_summary(report_of([row], tmp_path))
    assert (summary["metrics"], summary["timings"], summary["edits"]) == ([], {}, 1)


def test_of_rows_in_many_files_the_newest_counts_whatever_the_order(tmp_path: Path) -> None:
    for number in range(3):
        rows = [
            make_row(f"v{n}", finished_at=NOON + timedelta(seconds=number), attempts=number + 1)
            for n in range(number, 6)
        ]
        write_rows(str(tmp_path), rows, f"run-{number}-000000")
    write_report(str(tmp_path))
    edits = [edit for card in read_cards(str(tmp_path)) for edit in card["edits"]]
    assert [edit["facts"]["Attempts"] for edit in edits] == ["1", "2", "3", "3", "3", "3"]
    assert read_summary(str(tmp_path))["retried"] == 5


def test_the_command_compares_and_samples(tmp_path: Path) -> None:
    write_rows(str(tmp_path / "a"), make_rows(5, 2))
    write_rows(str(tmp_path / "b"), make_rows(5, 2))
    arguments = ["report", str(tmp_path / "a"), "--compare", str(tmp_path / "b"), "--sample", "4"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    summary = read_summary(str(tmp_path / "a"))
    assert (summary["compare"]["both"], summary["shown"]["edits"]) == (10, 4)
    refused = CliRunner().invoke(app, [*arguments[:-1], "0"])
    assert refused.exit_code == 2


def test_results_put_together_while_they_are_read_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(str(tmp_path), [make_row()])

    def after_a_run_ended(*arguments: Any) -> Any:
        part = tmp_path / "results" / "run-1-000000.parquet"
        if part.exists():
            part.rename(part.with_name("run-2-compact-000000.parquet"))
        return read_rows(*arguments)

    monkeypatch.setattr("jobs.report.gather.read_rows", after_a_run_ended)
    write_report(str(tmp_path))
    assert read_summary(str(tmp_path))["edits"] == 1


def test_results_that_go_again_and_again_are_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(str(tmp_path), [make_row()])

    def after_a_run_ended(*arguments: Any) -> Any:
        (part,) = (tmp_path / "results").iterdir()
        part.rename(part.with_name(f"x{part.name}"))
        return read_rows(*arguments)

    monkeypatch.setattr("jobs.report.gather.read_rows", after_a_run_ended)
    with pytest.raises(Unreadable, match=r"x*run-1-000000.*run the same command again"):
        write_report(str(tmp_path))


def test_results_with_a_damaged_column_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its footer is whole, and so are the columns that tell which rows count."""
    write_rows(str(tmp_path), [make_row("a")], "run-1-000000")
    write_rows(str(tmp_path), [make_row("b")], "run-2-000000")
    part = tmp_path / "results" / "run-2-000000.parquet"
    data = bytearray(part.read_bytes())
    column = SCHEMA.get_field_index("prompt")
    place = pq.ParquetFile(part).metadata.row_group(0).column(column)
    assert place.path_in_schema == "prompt"
    start = place.dictionary_page_offset
    data[start : start + 30] = bytes(30)
    part.write_bytes(data)
    write_report(str(tmp_path))
    assert read_summary(str(tmp_path))["edits"] == 1
    assert f"warning: results {tmp_path}/results/run-2-000000.parquet: cannot be" in (
        capsys.readouterr().err
    )


PEAK = """
import resource, sys
from jobs.report import write_report
from jobs.report.read import read_rows
write_report(sys.argv[1], sample=1000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_memory_grows_by_less_than_a_kilobyte_a_row(tmp_path: Path) -> None:
    peaks = []
    for parts in (4, 16):
        output = tmp_path / str(parts)
        write_rows(str(output), [make_row(str(n)) for n in range(2500)], "run-1-000000")
        data = Folder(str(output)).read("results/run-1-000000.parquet")
        table = pq.read_table(pa.BufferReader(data))
        for part in range(1, parts):
            ids = pa.array([f"{part}-{n}" for n in range(2500)])
            other = table.set_column(table.column_names.index("video_id"), "video_id", ids)
            Folder(str(output)).write(f"results/run-1-{part:06d}.parquet", to_parquet(other))
        command = [sys.executable, "-c", PEAK, str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
        assert read_summary(str(output))["edits"] == 2500 * parts
    assert np.diff(peaks)[0] < 1000 * 30_000, json.dumps(peaks)


def test_the_jobs_of_both_runs_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(
        "jobs.report.gather.read_resolved", lambda output: read.append(output.uri) or {}
    )
    two_runs(make_rows(2, 2), make_rows(2, 2), tmp_path)
    assert read == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_a_damaged_job_file_in_an_output_is_named(tmp_path: Path) -> None:
    write_rows(str(tmp_path), make_rows(1, 1))
    (tmp_path / "job.yaml").write_text("name: [")
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 1
    assert f"{tmp_path}: cannot be read: job file {tmp_path}/job.yaml: is not" in done.stderr


def test_a_report_that_finds_the_disk_full_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write_rows(str(tmp_path), make_rows(1, 1))
    monkeypatch.setattr(Folder, "write", full)
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: report {tmp_path}/report: cannot be written")
    assert f"no space is left in {tmp_path}: free some" in done.stderr
