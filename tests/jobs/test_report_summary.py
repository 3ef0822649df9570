"""The summary of the runs at the head of the report: what it holds, and how it leads on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.report import write_report
from jobs.summary import as_json, plain, summarise
from jobs.summary.record import FILE, Against, Compared
from pipeline.storage import Folder
from tests.report_results import (
    HOSTILE,
    NOON,
    TIMINGS,
    make_failed_row,
    make_row,
    read_summary,
    report_of,
    write_rows,
)


def some_rows() -> list[dict]:
    """Forty edits over forty minutes, of which four failed; `clip-3/edit-3` took longest."""
    rows = []
    for number in range(40):
        video, edit = divmod(number, 4)
        same = {
            "video_id": f"clip-{video + 1}",
            "edit_id": f"edit-{edit + 1}",
            "finished_at": NOON + timedelta(minutes=number),
        }
        if number % 10 == 9:
            code = "out_of_memory" if number < 30 else "not_finite"
            rows.append(make_failed_row(code, "it went wrong", **same))
        else:
            slow = 9.0 if (video, edit) == (2, 2) else 0.5
            rows.append(make_row(**same, timings=dict.fromkeys(TIMINGS, slow)))
    return rows


def test_the_page_has_the_summary_of_the_runs(tmp_path: Path) -> None:
    output = report_of(some_rows(), tmp_path)
    run = read_summary(output)["run"]
    assert run == plain(summarise(Folder(output)))
    assert (run["all"]["ok"], run["all"]["failed"]) == (36, 4)


def with_a_plan(output: str) -> str:
    """An output whose last run has written its plan."""
    folder = Folder(output)
    plan = Against(
        gpu="H100",
        basis="assumed",
        edits=Compared.of(40, 36),
        wall_hours=Compared.of(2.0, 3.0),
        memory_bytes=Compared.of(27e9, None),
    )
    summary = replace(summarise(folder), seconds=2345.6, plan=plan)
    folder.write(FILE, as_json(summary).encode())
    write_report(output)
    return output


def test_the_page_has_the_plan_of_the_last_run(tmp_path: Path) -> None:
    run = read_summary(with_a_plan(report_of(some_rows(), tmp_path)))["run"]
    assert run["plan"]["wall_hours"] == {"planned": 2.0, "actual": 3.0, "ratio": 1.5}


pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

from tests.report_page import CHROMIUM, DRIVER, Report, chromium_driver, contrast  # noqa: E402

in_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium or no chromedriver"),
]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium_driver(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report of two runs, the first of one edit whose ids are hostile."""
    folder = tmp_path_factory.mktemp("out")
    earlier = NOON - timedelta(days=1)
    first = make_row(HOSTILE, HOSTILE, run="run-0", finished_at=earlier, output=None)
    write_rows(str(folder), [first], "run-0-000000")
    write_rows(str(folder), some_rows())
    return f"file://{write_report(str(folder))}"


@pytest.fixture
def report(chromium: Any, address: str) -> Report:
    return Report(chromium).open(address)


class TestInABrowser:
    pytestmark = in_browser

    def test_the_last_run_is_shown_and_all_of_them_by_a_click(self, report: Report) -> None:
        assert report.texts("#runs-title span") == ["22 Nov, 12:00 to 22 Nov, 12:39 UTC · 39 min"]
        assert report.texts("#runs h3") == [
            "Edits over time",
            "What the work went into",
            "Cost against the plan",
            "Slowest edits",
            "Failures by code",
        ]
        shown = report.ask("[...document.querySelectorAll('.over-time .bar')].length")
        assert shown == 40
        report.click("#runs .modes button", 1)
        assert report.texts("#runs-title span")[0].startswith("21 Nov, 12:00 to 22 Nov, 12:39 UTC")
        assert report.texts("#runs .modes [aria-pressed=true]") == ["All 2 runs"]
        assert not report.ask("window.hacked")

    def test_a_slow_edit_leads_to_its_card(self, report: Report) -> None:
        assert report.texts(".slow .link")[0] == "clip-3 / edit-3"
        assert report.texts(".slow li b")[0] == f"{9 * len(TIMINGS)} s"
        report.click(".slow .link")
        report.wait_for("1 video, 1 edit")
        assert report.cards() == ["clip-3"]

    def test_a_code_leads_to_the_edits_that_have_it(self, report: Report) -> None:
        assert report.texts(".why .link") == ["out_of_memory", "not_finite"]
        report.click(".slow .link")
        report.wait_for("1 video, 1 edit")
        report.click(".why .link")
        report.wait_for("3 videos, 3 edits")
        assert report.find("input[value='failed/out_of_memory']").is_selected()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_its_text_can_be_read(self, report: Report, scheme: str) -> None:
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        report.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        texts = report.all("#runs h3, #runs .link, #runs .quiet, #runs dd, #runs b")
        assert min(contrast(report, text) for text in texts if text.is_displayed()) >= 4.5

    def test_the_plan_stands_beside_what_the_last_run_took(
        self, report: Report, tmp_path: Path
    ) -> None:
        output = with_a_plan(report_of(some_rows(), tmp_path))
        report.open(f"file://{output}/report/index.html")
        assert report.texts(".against dt") == ["Edits", "Time"], "the others are not known"
        assert report.texts(".against dd") == ["36 of 40, 90%", "3 h 0 min of 2 h 0 min, 150%"]
        assert report.texts(".against .about") == ["Hours from the assumed speed of H100."]

    def test_a_narrow_screen_has_the_videos_first(self, report: Report, address: str) -> None:
        size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        report.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            report.open(address)
            assert not report.find("#runs .over-time").is_displayed()
            report.click("#runs-title")
            assert report.find("#runs .over-time").is_displayed()
            assert report.ask("document.documentElement.scrollWidth") <= 400
        finally:
            report.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
