"""What the report's files hold; how the page behaves stands in test_report_browser.py."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import get_type_hints
from urllib.request import urlopen

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import JobError
from jobs.report import write_report
from jobs.report.metrics import METRICS, SCORES, describe, summarise
from pipeline.records import Metrics, without_none
from pipeline.scores import Scores
from pipeline.storage import Folder
from tests.report_results import (
    HOSTILE,
    NOON,
    make_failed_row,
    make_row,
    make_rows,
    public_bucket,
    read_cards,
    read_column,
    read_summary,
    report_of,
    write_rows,
)


def files_of(output: str) -> dict[str, bytes]:
    folder = Folder(output)
    return {name: folder.read(name) for name in folder.list("report")}


def test_the_report_says_where_its_page_is(tmp_path: Path) -> None:
    write_rows(str(tmp_path), [make_row()])
    assert write_report(str(tmp_path)) == str(tmp_path / "report" / "index.html")
    assert f"<h1>{tmp_path.name}</h1>" in (tmp_path / "report" / "index.html").read_text()


def test_a_card_holds_a_video_and_its_edits_in_the_order_of_their_names(tmp_path: Path) -> None:
    rows = [make_row(video, edit) for video in ("clip-10", "clip-9") for edit in ("e2", "e1")]
    cards = read_cards(report_of(rows, tmp_path))
    assert [(card["id"], [e["id"] for e in card["edits"]]) for card in cards] == [
        ("clip-9", ["e1", "e2"]),
        ("clip-10", ["e1", "e2"]),
    ]
    assert cards[0]["source"] == "../sources/clip-9.mp4"
    assert cards[0]["edits"][0]["clip"] == "../edits/clip-9/e1.mp4"


def test_columns_name_the_edits_in_the_order_of_the_cards(tmp_path: Path) -> None:
    output = report_of(make_rows(videos=130, edits=2), tmp_path)
    cards, summary = read_cards(output), read_summary(output)
    edits = [edit for card in cards for edit in card["edits"]]
    assert len(summary["cards"]) == 3
    assert read_column(output, "layout") == [len(card["edits"]) for card in cards]
    states = [summary["states"][place][:2] for place in read_column(output, "state")]
    assert states == [[edit["status"], edit["code"]] for edit in edits]
    for place, metric in enumerate(summary["metrics"]):
        column = read_column(output, f"number:{metric['key']}")
        assert column == [edit["numbers"][place] for edit in edits]


def test_of_two_rows_of_an_edit_the_newer_counts(tmp_path: Path) -> None:
    newer = make_row(prompt="again", finished_at=NOON + timedelta(seconds=1))
    write_rows(str(tmp_path), [newer], "run-1-000000")
    write_rows(str(tmp_path), [make_row(prompt="before")], "run-2-000000")
    write_report(str(tmp_path))
    ((edit,),) = [card["edits"] for card in read_cards(str(tmp_path))]
    assert edit["prompt"] == "again"


def test_an_edit_that_was_made_is_not_hidden_by_a_refused_row_with_its_ids(tmp_path: Path) -> None:
    other = {"fingerprint": None, "video": "other.mp4", "finished_at": NOON + timedelta(seconds=9)}
    refused = make_failed_row("duplicate_video_id", "give it its own", **other)
    nameless = [
        make_failed_row(
            "bad_video_id", "no id", video_id=None, edit_id=None, fingerprint=None, video=f"{n}.mp4"
        )
        for n in range(2)
    ]
    cards = read_cards(report_of([make_row(), refused, *nameless], tmp_path))
    assert sorted(str(card["video"]) for card in cards) == sorted(
        ["0.mp4", "1.mp4", "other.mp4", str(make_row()["video"])]
    )
    assert sorted(edit["status"] for card in cards for edit in card["edits"]) == [
        "failed",
        "failed",
        "failed",
        "ok",
    ]


def test_ids_with_digits_of_any_script_and_of_any_length_have_an_order(tmp_path: Path) -> None:
    names = ["abc", "\u0967\u0968", "clip-1\uff12", "clip-1", "\u00b2", "9" * 5000]
    cards = read_cards(report_of([make_row(name) for name in names], tmp_path))
    assert {card["id"] for card in cards} == set(names)


def test_writing_again_changes_nothing_and_leaves_nothing_old(tmp_path: Path) -> None:
    output = report_of(make_rows(4, 3), tmp_path)
    first = files_of(output)
    write_report(output)
    assert files_of(output) == first
    write_rows(output, [make_row(finished_at=NOON + timedelta(days=1))], "run-2-000000")
    write_report(output)
    second = files_of(output)
    named = {*read_summary(output)["cards"], *read_summary(output)["columns"].values()}
    assert second != first
    assert set(second) == {"report/index.html", *(f"report/data/{name}.js" for name in named)}


def test_names_are_encoded_in_links(tmp_path: Path) -> None:
    card = read_cards(report_of([make_row("50% #1&ü x", "a+b")], tmp_path))[0]
    assert card["edits"][0]["clip"] == "../edits/50%25%20%231%26%C3%BC%20x/a%2Bb.mp4"


def test_html_in_a_prompt_or_a_setting_does_not_end_the_page_s_scripts(tmp_path: Path) -> None:
    Folder(str(tmp_path)).write("job.yaml", json.dumps({"checkpoint": HOSTILE}).encode())
    error = make_failed_row("internal", HOSTILE)
    output = report_of([make_row("a", prompt=HOSTILE), error], tmp_path)
    page = Folder(output).read("report/index.html").decode()
    assert page.count("</script>") == 2  # the summary's and the program's
    assert HOSTILE not in page
    assert read_cards(output)[0]["edits"][0]["prompt"] == HOSTILE
    assert read_summary(output)["settings"] == [["job", [["checkpoint", HOSTILE]]]]


def test_a_title_with_html_and_braces_in_it_stays_text(tmp_path: Path) -> None:
    output = report_of([make_row()], tmp_path / "a<b>{{style}}")
    page = Folder(output).read("report/index.html").decode()
    assert "<h1>a&lt;b&gt;{{style}}</h1>" in page


def test_settings_are_shown_by_section(tmp_path: Path) -> None:
    job = "seed: 0\nvideo: {fps: null}\ncluster: {inversion: {gpus: 1}, retries: 2}\n"
    Folder(str(tmp_path)).write("job.yaml", job.encode())
    assert read_summary(report_of([make_row()], tmp_path))["settings"] == [
        ["job", [["seed", "0"]]],
        ["video", [["fps", "null"]]],
        ["cluster", [["inversion.gpus", "1"], ["retries", "2"]]],
    ]


def test_the_summary_adds_up_the_job(tmp_path: Path) -> None:
    rows = [
        make_row("a"),
        make_row("b", attempts=2),
        make_failed_row("not_finite", "no", video_id="c"),
        make_failed_row("rank_died", "died", video_id="d", status="quarantined"),
    ]
    summary = read_summary(report_of(rows, tmp_path))
    assert (summary["videos"], summary["edits"], summary["retried"]) == (4, 4, 1)
    assert sorted(summary["states"], key=str) == [
        ["failed", "not_finite", 1, 1],
        ["ok", None, 2, 2],
        ["quarantined", "rank_died", 1, 1],
    ]
    assert summary["gpuSeconds"] == 4.0
    assert summary["forwards"] == {"inversion": 64.0, "plain": 120.0, "injected": 240.0}
    assert summary["timings"]["decode"] == 2.0
    assert summary["finished"] == "2025-11-22 12:00:00 UTC"


def test_a_video_without_any_usable_edit_is_a_card_with_its_error(tmp_path: Path) -> None:
    row = make_failed_row("no_edits", "the video has no edits", edit_id=None, source=None)
    card = read_cards(report_of([row | {"prompt": None, "frames": None}], tmp_path))[0]
    assert card["source"] is None
    assert (card["edits"][0]["id"], card["edits"][0]["code"]) == (None, "no_edits")


def test_a_seed_of_63_bits_keeps_all_its_digits(tmp_path: Path) -> None:
    card = read_cards(report_of([make_row(seed=2**62 + 1)], tmp_path))[0]
    assert card["edits"][0]["facts"]["Seed"] == "4611686018427387905"


def test_values_that_are_not_finite_do_not_break_the_page(tmp_path: Path) -> None:
    rows = [
        make_row("a", metrics={"vae_psnr_db": math.inf, "flicker": math.nan}),
        make_row("b", metrics={"vae_psnr_db": 30.0, "flicker": 0.01}),
    ]
    output = report_of(rows, tmp_path)
    assert read_column(output, "number:vae_psnr_db") == [math.inf, 30.0]
    assert read_column(output, "number:flicker") == [None, 0.01]
    page = Folder(output).read("report/index.html").decode()
    summary = re.search(r'id="summary">(.*?)</script>', page, re.S)
    assert summary and not re.search(r"\b(Infinity|NaN)\b", summary[1])


def test_other_columns_are_shown_and_their_numbers_can_be_sorted(tmp_path: Path) -> None:
    rows = [make_row(str(n), difficulty=n, kind="shapes") for n in range(3)]
    rows = [row | {"metrics": row["metrics"] | {"sharpness": 0.3}} for row in rows]
    output = report_of(rows, tmp_path)
    added = {m["key"]: m["label"] for m in read_summary(output)["metrics"][-2:]}
    assert added == {"difficulty": "Difficulty", "sharpness": "Sharpness"}
    assert read_column(output, "number:difficulty") == [0, 1, 2]
    assert read_cards(output)[0]["columns"] == [["kind", "shapes"]]


def test_columns_with_values_that_python_cannot_hold_are_shown_as_text(tmp_path: Path) -> None:
    write_rows(str(tmp_path), [make_row()])
    (file,) = (tmp_path / "results").iterdir()
    table = pq.read_table(file)
    bytes_alone = pa.array([b"caf\xe9 </script>"]).view(pa.string())
    for name, values in {
        "until": pa.array([253_402_300_800_000], pa.timestamp("ms")),
        "nanoseconds": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")),
        "latin": bytes_alone,
        "several": pa.ListArray.from_arrays([0, 1], bytes_alone),
    }.items():
        table = table.append_column(name, values)
    pq.write_table(table, file)
    write_report(str(tmp_path))
    shown = dict(read_cards(str(tmp_path))[0]["columns"])
    assert shown["until"] == "10000-01-01 00:00:00.000"
    assert shown["nanoseconds"].startswith("2023-11-14 22:13:20")
    assert shown["latin"] == "caf\\xe9 </script>"
    assert shown["several"] == "a value with bytes that are not UTF-8"


def test_a_number_of_one_edit_is_not_shown_as_one_of_its_video(tmp_path: Path) -> None:
    rows = [
        make_failed_row("internal", "it broke", edit_id="a", clip_text=None),
        make_row(edit_id="b", clip_text=0.27),
        make_row(edit_id="c", clip_text=0.31),
    ]
    output = report_of(rows, tmp_path)
    assert read_cards(output)[0]["columns"] == []
    assert read_column(output, "number:clip_text") == [None, 0.27, 0.31]


def test_damage_of_a_trajectory_is_shown_beside_the_edit(tmp_path: Path) -> None:
    card = read_cards(report_of([make_row(trajectory_damage="a shard is gone")], tmp_path))[0]
    assert card["edits"][0]["facts"]["Trajectory damage"] == "a shard is gone"


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"no rows in results/\*\.parquet.*run the job"):
        write_report(str(tmp_path))
    assert not (tmp_path / "report").exists()


def test_one_stray_value_does_not_press_all_others_into_one_bar() -> None:
    values = [n / 1000 for n in range(1000)] + [1e6]
    summary = summarise(describe("flicker"), values)
    assert sum(summary["bars"]) == 1001
    assert max(summary["bars"]) < 100
    assert (summary["low"], summary["high"]) == (0.0, 1e6)


def test_bars_of_large_numbers_hold_what_they_count() -> None:
    values = [1_700_000_000 + 100 * n for n in range(500)]
    summary = summarise(describe("uploaded"), values)
    edges = summary["edges"]
    assert sorted(set(edges)) == edges
    first = sum(edges[0] <= value < edges[1] for value in values)
    assert first == summary["bars"][0]


def test_a_metric_that_no_edit_has_and_one_that_never_changes_have_no_histogram() -> None:
    assert "bars" not in summarise(describe("flicker"), [None, math.nan])
    assert summarise(describe("flicker"), [2.0, 2.0])["bars"] == [2]


def test_every_metric_of_a_result_row_is_explained_in_one_line() -> None:
    stored = {field.name for field in fields(Metrics)} - {"unmeasured"}
    scored = {
        f"{kind}_{field.name}"
        for kind, record in get_type_hints(Scores).items()
        for field in fields(without_none(record))
        if field.name not in ("reason", "model", "fingerprint", "error")
    }
    assert scored == {metric.key for metric in SCORES}
    assert stored | scored <= {metric.key for metric in METRICS}
    assert all(0 < len(metric.about) <= 85 for metric in METRICS)


def test_the_page_names_nothing_outside_of_itself(tmp_path: Path) -> None:
    page = Folder(report_of([make_row()], tmp_path)).read("report/index.html").decode()
    assert set(re.findall(r"\w+://[\w.]+", page)) == {"http://www.w3.org"}  # SVG's name, no address


def test_writing_a_report_loads_neither_torch_nor_ray() -> None:
    code = "import sys, jobs.report; print([m for m in ('torch', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_report_is_written_to_any_file_system() -> None:
    output = "memory://job-of-the-report"
    try:
        write_rows(output, make_rows(3, 2))
        assert write_report(output) == "memory:///job-of-the-report/report/index.html"
        assert len(read_cards(output)) == 3
    finally:
        fsspec.filesystem("memory").rm("/job-of-the-report", recursive=True)


@pytest.mark.s3
def test_in_a_bucket_files_have_types_that_a_browser_shows() -> None:
    with public_bucket() as (output, address):
        write_rows(output, make_rows(3, 2))
        assert write_report(output) == f"{output}/report/index.html"
        first = files_of(output)
        write_report(output)
        assert files_of(output) == first
        types = {}
        for name in first:
            with urlopen(f"{address}/{name}") as answer:
                types[name.rsplit(".", 1)[-1]] = answer.headers["Content-Type"]
    assert types == {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8"}
