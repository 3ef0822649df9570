"""Judging edits in the report's page: keys, marks and their files, the large view, two runs.

In headless Chromium, with real keys. Skipped where there is none.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.report_results import (
    HOSTILE,
    make_failed_row,
    make_row,
    make_rows,
    report_of,
    write_clips,
)

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from tests.report_page import CHROMIUM, DRIVER, Report, chromium_driver, contrast

VIDEOS, EDITS = 30, 3
COLUMNS = ["video_id", "edit_id", "pick", "rating", "note"]
NOTE = 'two "stars", one\nline more, שלום'

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="no Chromium or no chromedriver on the PATH: apt-get install chromium "
        "chromium-driver",
    ),
]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium_driver(tmp_path_factory.mktemp("profile")) as driver:
        features = [{"name": "prefers-reduced-motion", "value": "reduce"}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        yield driver


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = make_rows(VIDEOS, EDITS)
    output = tmp_path_factory.mktemp("judged")
    write_clips(str(output), rows[: 2 * EDITS])
    return f"file://{report_of(rows, output)}/report/index.html"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report of two runs: one edit only in the first, one only in the second, one worse."""
    folder = tmp_path_factory.mktemp("runs")
    here = [make_row("v", "red", metrics={"flicker": 0.25}), make_row("v", "blue")]
    there = [
        make_row("v", "red", metrics={"flicker": 0.75}, prompt=HOSTILE),
        make_failed_row("not_finite", "went wrong", video_id="w", edit_id="red"),
    ]
    for name, rows in (("first", here), ("second", there)):
        write_clips(str(folder / name), rows)
        report_of(rows, folder / name)
    output = report_of(here, folder / "first", compare=str(folder / "second"))
    return f"file://{output}/report/index.html"


@pytest.fixture
def report(chromium: Any, page: str) -> Report:
    return fresh(chromium, page)


def fresh(chromium: Any, page: str) -> Report:
    """The page in a browser that keeps no marks yet."""
    chromium.execute_script("try { localStorage.clear() } catch {}")  # not on the first, empty page
    return Report(chromium).open(page)


def press(report: Report, *keys: str) -> None:
    ActionChains(report.driver).send_keys(*keys).perform()


def focused(report: Report) -> str:
    return report.ask("document.activeElement.getAttribute('aria-label')")


def mark(report: Report, video: str, edit: str) -> list[Any]:
    return report.ask(
        "(({pick, rating, note}) => [pick, rating, note])(picks.get(...arguments))", video, edit
    )


def test_keys_move_over_edits_rows_and_pages(report: Report) -> None:
    press(report, Keys.ARROW_RIGHT)
    assert focused(report) == "Edit edit-2 of clip-1, Done"
    press(report, "j", Keys.ARROW_DOWN, "k")
    assert focused(report) == "Edit edit-2 of clip-2, Done"
    press(report, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert focused(report) == "Edit edit-3 of clip-1, Done"
    press(report, *["j"] * 11)
    assert focused(report) == "Edit edit-3 of clip-12, Done"
    press(report, Keys.ARROW_RIGHT)
    report.wait(lambda: focused(report) == "Edit edit-1 of clip-13, Done")
    press(report, Keys.ARROW_LEFT)
    report.wait(lambda: focused(report) == "Edit edit-3 of clip-12, Done")
    assert report.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_keys_pick_reject_and_rate_and_say_so(report: Report) -> None:
    press(report, "p")
    assert report.texts("#announce") == ["Picked edit-1 of clip-1"]
    press(report, Keys.ARROW_RIGHT, "x", "4", Keys.ARROW_RIGHT, "5", "0", "p", "p")
    assert mark(report, "clip-1", "edit-1") == ["pick", None, ""]
    assert mark(report, "clip-1", "edit-2") == ["reject", 4, ""]
    assert mark(report, "clip-1", "edit-3") == ["", None, ""]
    assert report.texts("#marked") == ["1 picked · 1 rejected · 1 rated"]
    pressed = report.all(".mark[aria-pressed=true]")
    assert [button.accessible_name for button in pressed] == ["Pick edit-1", "Reject edit-2"]


def test_marks_are_there_after_the_page_is_loaded_again(report: Report, page: str) -> None:
    press(report, "x", "2", "n")
    press(report, "too red")
    report.open(page)
    assert mark(report, "clip-1", "edit-1") == ["reject", 2, "too red"]
    assert report.find(".marks textarea").get_attribute("value") == "too red"
    Select(report.find("#only-marks")).select_by_visible_text("Rejected")
    report.wait_for("1 video, 1 edit")
    Select(report.find("#only-marks")).select_by_visible_text("Not judged yet")
    report.wait_for(f"1–12 of {VIDEOS} videos, {VIDEOS * EDITS - 1} edits")


def test_keys_do_nothing_while_one_types(report: Report) -> None:
    press(report, "/")
    assert report.ask("document.activeElement.id") == "search"
    press(report, "px1 ?jo")
    assert report.find("#search").get_attribute("value") == "px1 ?jo"
    assert report.ask("picks.marks.size") == 0
    assert not report.all("dialog[open]")
    report.wait_for("Nothing matches. Take a filter away or search for something else.")
    press(report, *[Keys.BACKSPACE] * 7)
    report.wait_for(f"1–12 of {VIDEOS} videos, {VIDEOS * EDITS} edits")
    press(report, Keys.ESCAPE, "p")
    assert report.ask("picks.marks.size") == 1
    press(report, "n", "1 px", Keys.ESCAPE, "3")
    assert mark(report, "clip-1", "edit-1") == ["pick", 3, "1 px"]


def test_space_plays_all_and_the_question_mark_lists_the_keys(report: Report) -> None:
    press(report, " ")
    assert report.find("#together .play").accessible_name == "Pause all clips"
    press(report, " ", "?")
    assert report.find("#together .play").get_attribute("aria-label") == "Play all clips"
    assert "Reject, or take it back" in report.texts("#keys dd")
    press(report, "p", Keys.ESCAPE)
    assert report.ask("picks.marks.size") == 0
    assert not report.find("#keys").is_displayed()


def test_marks_are_exported_as_csv_and_as_parquet(report: Report) -> None:
    ids = [("=1+1", "@sum"), ("clip, 2", 'a "b"'), ("ü" * 200, "-x")]
    for place, (video, edit) in enumerate(ids):
        change = [{"pick": "pick"}, {"pick": "reject", "rating": 5}, {"note": NOTE}][place]
        report.driver.execute_script("picks.set(...arguments)", video, edit, change)
    wanted = [
        ("=1+1", "@sum", "pick", None, None),
        ("clip, 2", 'a "b"', "reject", 5, None),
        ("ü" * 200, "-x", None, None, NOTE),
    ]
    text = report.ask("toCsv(picks.rows())")
    head, *rows = csv.reader(io.StringIO(text, newline=""))
    assert head == COLUMNS
    assert rows == [["" if v is None else str(v) for v in row] for row in wanted]
    assert text.count("\r\n") == 4
    table = pq.read_table(io.BytesIO(bytes(report.ask("Array.from(toParquet(picks.rows()))"))))
    assert table.column_names == COLUMNS
    assert [str(t) for t in table.schema.types] == ["string", "string", "string", "int32", "string"]
    assert [tuple(row.values()) for row in table.to_pylist()] == wanted


def test_a_large_parquet_of_marks_is_read_whole(report: Report) -> None:
    row = "[`v${i}`, 'e', i % 3 ? 'pick' : null, i % 5 || null, null]"
    rows = f"Array.from({{length: 20000}}, (_, i) => {row})"
    table = pq.read_table(io.BytesIO(bytes(report.ask(f"Array.from(toParquet({rows}))"))))
    assert table["video_id"].to_pylist() == [f"v{i}" for i in range(20000)]
    assert table["pick"].null_count == 6667
    assert table["rating"].to_pylist() == [i % 5 or None for i in range(20000)]


def test_a_file_of_marks_is_exported_and_imported_again(report: Report, tmp_path: Path) -> None:
    behavior = {"behavior": "allow", "downloadPath": str(tmp_path)}
    report.driver.execute_cdp_cmd("Browser.setDownloadBehavior", behavior)
    press(report, "p", "3")
    report.driver.execute_script("picks.set('clip-1', 'edit-1', {note: arguments[0]})", NOTE)
    report.click("#export-csv")
    report.click("#export-parquet")
    csv_file, parquet = tmp_path / "picks.csv", tmp_path / "picks.parquet"
    report.wait(lambda: csv_file.exists() and parquet.exists() and parquet.stat().st_size)
    (row,) = pq.read_table(parquet).to_pylist()
    assert row == dict(zip(COLUMNS, ("clip-1", "edit-1", "pick", 3, NOTE), strict=True))
    press(report, "x")
    report.find("#import-file").send_keys(str(csv_file))
    report.wait(lambda: mark(report, "clip-1", "edit-1") == ["pick", 3, NOTE])
    assert report.texts("#announce") == ["1 mark imported from picks.csv"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("video_id,pick\nclip-1,pick\n", "no column edit_id"),
        ("video_id,edit_id,pick\na,b,pick\na,c,maybe\n", 'row 2: pick is "maybe"'),
        ("video_id,edit_id,rating\na,b,6\n", 'row 1: rating is "6"'),
        ('video_id,edit_id\na,b"c"\n', "line 2: a quote"),
    ],
)
def test_a_file_with_a_bad_mark_is_refused_as_a_whole(
    report: Report, tmp_path: Path, text: str, problem: str
) -> None:
    (tmp_path / "picks.csv").write_text(text)
    report.find("#import-file").send_keys(str(tmp_path / "picks.csv"))
    report.wait(lambda: report.find("#warning").is_displayed())
    assert problem in report.texts("#warning")[0]
    assert report.ask("picks.marks.size") == 0


def test_edits_are_sorted_by_edit_each_on_its_own(report: Report) -> None:
    Select(report.find("#sort")).select_by_value("edit")
    report.wait_for(f"1–24 of {VIDEOS * EDITS} edits")
    assert report.texts("#cards.each .foot code") == ["edit-1"] * 24
    report.click("#direction")
    report.wait(lambda: report.texts(".foot code") == ["edit-3"] * 24)
    Select(report.find("#only-edit")).select_by_visible_text("edit-2")
    report.wait_for(f"1–24 of {VIDEOS} edits")
    report.click(".card .title")
    report.wait_for("1 edit")
    assert report.texts(".chip") == ["Video clip-1 ✕"]


def test_the_large_view_wipes_overlays_and_keeps_clips_in_step(report: Report) -> None:
    press(report, Keys.ARROW_RIGHT, Keys.ENTER)
    clips = report.all("#certificate video")
    report.wait(lambda: report.ask("arguments[0].every(v => v.readyState >= 2)", clips))
    press(report, "w", "]", "]")
    slider = report.find(".stage-slider input")
    assert slider.get_attribute("aria-valuetext") == "60 %"
    slider.send_keys(Keys.ARROW_LEFT)
    assert report.texts(".stage-slider output") == ["59 %"]
    top = report.find(".stack .top")
    assert top.value_of_css_property("clip-path") == "inset(0px 0px 0px 59%)"
    press(report, "v")
    assert report.ask("getComputedStyle(arguments[0]).opacity", clips[1]) == "0.5"
    assert clips[0].rect == clips[1].rect
    report.find("#certificate .transport input").send_keys(Keys.ARROW_RIGHT * 4)
    report.wait(lambda: report.frames(clips) == [4.5, 4.5])
    press(report, "d")
    assert top.value_of_css_property("mix-blend-mode") == "difference"
    press(report, "p", "j", "2")
    assert report.texts("#certificate-title") == ["edit-3"]
    assert mark(report, "clip-1", "edit-2")[0] == "pick"
    assert mark(report, "clip-1", "edit-3") == ["", 2, ""]
    press(report, Keys.ESCAPE)
    report.wait(lambda: focused(report) == "Edit edit-3 of clip-1, Done")


def test_two_runs_stand_side_by_side_with_their_difference(chromium: Any, compared: str) -> None:
    report = fresh(chromium, compared)
    (note,) = report.texts("#notes p")
    assert "first beside second: 1 edit in both, 1 only in first, 1 only in second" in note
    assert report.texts(".tile[data-edit=red] .badge")[:2] == ["first", "second"]
    assert report.texts("[data-edit=blue] .missing") == ["Only in first"]
    assert "Flicker0.25 · 0.75 -0.5" in report.texts("[data-edit=red] .numbers div")
    assert f"second: {HOSTILE}" in report.texts(".tile .prompt")
    assert report.texts(".tile.absent b") == ["Only in second", "Failed"]
    Select(report.find("#sort")).select_by_value("difference:flicker")
    report.wait(lambda: report.cards() == ["v", "w"])
    report.find(".tile[data-edit=red] .link").click()
    text = report.texts("#certificate [data-metric=flicker] .value")
    assert text == ["0.25 luma · 0.75 luma"]
    assert len(report.all("#certificate .stack .clip")) == 3
    press(report, "w")
    assert len([c for c in report.all("#certificate .stack .clip") if c.is_displayed()]) == 2
    assert report.ask("window.hacked") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_at_390_pixels_it_fits_and_text_stands_out(
    chromium: Any, compared: str, scheme: str
) -> None:
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wanted.items()]
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        report = fresh(chromium, compared)
        press(report, "p", "3", Keys.ARROW_RIGHT, "x")
        assert report.ask("document.documentElement.scrollWidth") <= 390
        for text in ("#marked", ".export", "#notes p", ".mark.pick[aria-pressed=true]", ".rating",
                     ".rating.set", ".mark.reject[aria-pressed=true]", ".stat .about", "kbd",
                     ".numbers b", ".missing.absent b", ".missing.failed b"):  # fmt: skip
            assert contrast(report, report.find(text)) >= 4.5, text
        press(report, "o")
        dialog = report.find("#certificate")
        for mode in "svdw":
            press(report, mode)
            assert report.ask("arguments[0].scrollWidth - arguments[0].clientWidth", dialog) == 0
        for text in ("textarea", ".stage-slider span", "[aria-pressed=true]", ".value .quiet"):
            assert contrast(report, report.find(f"#certificate {text}")) >= 4.5, text
    finally:
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_sample_says_so_and_counts_all(chromium: Any, tmp_path: Path) -> None:
    output = report_of(make_rows(VIDEOS, EDITS), tmp_path, sample=30)
    report = fresh(chromium, f"file://{output}/report/index.html")
    assert report.texts("#notes p")[0].startswith("A sample: 30 edits of 10 videos")
    assert report.texts("#states b")[0] == "30 of 90"
    assert report.texts(".stat .number")[0] == "87 of 90"
    report.wait_for("10 videos, 30 edits")
    press(report, "p")
    logged = report.driver.get_log("browser")
    assert [e for e in logged if e["level"] == "SEVERE" and "ERR_FILE" not in e["message"]] == []
    assert json.loads(report.ask("localStorage.getItem(PICK_STORE)"))[0][1]["pick"] == "pick"
