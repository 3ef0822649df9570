"""Scores, verdicts, masks, instructions and candidates in the report: its data, and its page.

The page in headless Chromium; those tests are skipped where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.accept import decide
from jobs.report import write_report
from pipeline.storage import Folder
from tests.report_results import HOSTILE, make_failed_row, make_row, read_summary, write_rows
from tests.report_results import write_clips as write_clips_of

RULES = ("background_psnr_db >= 30", "judge.follows >= 3")
ROWS = {  # video and edit -> PSNR of the background, does it follow
    ("clip-1", "blue"): (35.0, 4),
    ("clip-1", "red"): (25.0, 2),
    ("clip-2", "blue"): (31.0, None),
    ("clip-2", "red"): (40.0, 3),
}


def scored_row(video: str, edit: str, psnr: float, follows: int | None, **columns: Any) -> dict:
    judge = {"follows": follows, "reason": HOSTILE if follows else None, "model": "a/judge"}
    return make_row(
        video,
        edit,
        scores={"frames": {"background_psnr_db": psnr}, "judge": judge},
        instruction=f"Paint the star {edit}",
        mask=f"masks/{video}/{edit}.mp4",
        **columns,
    )


def make_candidates(edit: str) -> dict[str, Any]:
    def one(number: int, output: str | None, **more: Any) -> dict[str, Any]:
        changes = '{"start": 0.5, "guidance_scale": 8.0}' if number else "{}"
        scores = {"frames": {"background_psnr_db": 20.0 + number}}
        return {"number": number, "changes": changes, "output": output, "scores": scores, **more}

    failed = {"error_code": "not_finite", "error": "not finite", "scores": None}
    first = one(0, f"candidates/clip-1/{edit}/0.mp4")
    return {"candidate": 1, "candidates": [first, one(1, None), one(2, None, **failed)]}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("judged")
    rows = [scored_row(*key, *values) for key, values in ROWS.items()]
    rows[1] |= make_candidates("red")
    rows.append(make_failed_row("not_finite", "went wrong", video_id="clip-2", edit_id="sun"))
    write_rows(str(folder), rows)
    Folder(str(folder)).write("job.yaml", yaml.safe_dump({"accept": list(RULES)}).encode())
    decide(str(folder))
    write_clips_of(str(folder), rows)
    write_clips_of(str(folder), [{"output": row["mask"], "source": None} for row in rows[:4]])
    write_report(str(folder))
    return str(folder)


def test_scores_are_numbers_with_names_of_their_own(output: str) -> None:
    metrics = {metric["key"]: metric for metric in read_summary(output)["metrics"]}
    assert metrics["frames_background_psnr_db"]["label"] == "Background kept"
    assert metrics["frames_background_psnr_db"]["high"] == 40.0
    assert metrics["judge_follows"]["count"] == 3
    assert metrics["flicker"]["count"] == 4


def test_the_summary_has_the_rules_and_counts_each_verdict(output: str) -> None:
    summary = read_summary(output)
    assert summary["rules"] == [
        {"text": RULES[0], "key": "frames_background_psnr_db", "op": ">=", "number": 30.0},
        {"text": RULES[1], "key": "judge_follows", "op": ">=", "number": 3.0},
    ]
    assert {(accepted, tuple(why)): n for accepted, why, n, _ in summary["verdicts"]} == {
        (None, ()): 1,
        (True, ()): 2,
        (False, RULES): 1,
        (False, (f"{RULES[1]}: no score",)): 1,
    }


def test_the_rules_of_the_last_decision_are_shown(tmp_path: Path) -> None:
    write_rows(str(tmp_path), [scored_row("v", "red", 35.0, 4)])
    Folder(str(tmp_path)).write("job.yaml", yaml.safe_dump({"accept": list(RULES)}).encode())
    decide(str(tmp_path), ["metrics.flicker < 1", "gpu_seconds < 60"])
    write_report(str(tmp_path))
    rules = read_summary(str(tmp_path))["rules"]
    assert [rule["key"] for rule in rules] == ["flicker", "gpu_seconds"]


def test_scores_in_columns_of_an_earlier_version_have_the_same_names(tmp_path: Path) -> None:
    rows = [
        make_row("v", "old", clip_text=0.25, clip_model="a/clip"),
        make_row("v", "new", clip_text=None, clip_model=None, scores={"clip": {"text": 0.5}}),
    ]
    write_rows(str(tmp_path), rows)
    write_report(str(tmp_path))
    (metric,) = [m for m in read_summary(str(tmp_path))["metrics"] if m["key"] == "clip_text"]
    assert (metric["label"], metric["low"], metric["high"]) == ("CLIP: prompt", 0.25, 0.5)


def test_results_without_verdicts_have_none_on_the_page(tmp_path: Path) -> None:
    write_rows(str(tmp_path), [make_row()])
    write_report(str(tmp_path))
    summary = read_summary(str(tmp_path))
    assert summary["verdicts"] == [[None, [], 1, 1]]
    assert (summary["rules"], summary["masks"]) == ([], False)
    cards = Folder(str(tmp_path)).read(f"report/data/{summary['cards'][0]}.js").decode()
    assert not [name for name in ("mask", "accepted", "candidates") if f'"{name}"' in cards]


try:
    from selenium.webdriver import ActionChains
except ImportError:
    pass
else:
    from tests.report_page import CHROMIUM, DRIVER, Report, chromium_driver, contrast

in_browser = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium or no chromedriver: apt-get install chromium chromium-driver")
    with chromium_driver(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def report(chromium: Any, output: str) -> Iterator[Report]:
    chromium.get_log("browser")
    yield Report(chromium).open(f"file://{output}/report/index.html")
    assert [e for e in chromium.get_log("browser") if e["level"] == "SEVERE"] == []


@in_browser
def test_edits_are_filtered_by_verdict_and_by_rule(report: Report) -> None:
    assert report.texts("#verdicts .choice") == [
        "All5", "Accepted2", "Rejected2", f"{RULES[0]}1", f"{RULES[1]}1",
        f"{RULES[1]}: no score1", "No verdict1",
    ]  # fmt: skip
    report.click("input[name=verdict][value=yes]")
    report.wait_for("2 videos, 2 edits")
    assert report.texts(".verdict.yes p") == ["● Accepted"] * 2
    report.click(f"input[name=verdict][value='no/{RULES[0]}']")
    report.wait_for("1 video, 1 edit")
    assert report.texts(".verdict.no li") == [f"{RULES[0]}25 dB", f"{RULES[1]}2 of 4"]
    report.click("input[name=verdict][value=none]")
    report.wait(lambda: report.texts(".tile .error") == ["went wrong"])
    assert not report.all(".verdict")
    report.driver.back()
    report.wait_for("1 video, 1 edit")


@in_browser
def test_a_threshold_is_a_line_in_the_distribution(report: Report) -> None:
    plot = ".plot[data-metric=frames_background_psnr_db]"
    assert report.texts(f"{plot} .limit") == ["Accepted: ≥ 30 dB"]
    line, last = report.find(f"{plot} .threshold"), report.all(f"{plot} .bar")
    place = float(line.get_attribute("x1")) / len(last)
    assert place == pytest.approx((30 - 25) / (40 - 25))
    assert not report.all(".plot[data-metric=flicker] .threshold")


@in_browser
def test_instructions_are_shown_and_found(report: Report) -> None:
    report.find("#search").send_keys("paint red")
    report.wait_for("2 videos, 2 edits")
    assert report.texts(".instruction") == ["“Paint the star red”"] * 2


@in_browser
def test_masks_lie_over_the_edits_in_step_when_they_are_asked_for(report: Report) -> None:
    masks = report.all(".card:first-child .mask")
    assert len(masks) == 2
    assert not any(mask.is_displayed() or mask.get_attribute("src") for mask in masks)
    ActionChains(report.driver).send_keys("m").perform()
    assert report.find("#masks").get_attribute("aria-pressed") == "true"
    clips = report.load_clips()
    assert len(clips) == 5
    report.find(".card input[type=range]").send_keys("\ue014" * 3)  # to the right
    report.wait(lambda: report.frames(clips) == [3.5] * len(clips))
    report.click("#masks")
    assert not any(mask.is_displayed() for mask in masks)


@in_browser
def test_the_large_view_has_the_judges_reason_and_the_candidates(report: Report) -> None:
    report.click("[data-edit=red] .link")
    facts = dict(zip(report.texts("#certificate dt"), report.texts("#certificate dd"), strict=True))
    assert facts["Judge's reason"] == HOSTILE
    assert facts["Judge model"] == "a/judge"
    assert report.ask("window.hacked") is None
    rows = report.texts(".candidates tbody tr")
    assert rows == [
        "0none20 dBOpen",
        "1 chosenstart 0.5, guidance_scale 821 dBOpen",
        "2start 0.5, guidance_scale 8not_finite: not finite––",
    ]
    links = [one.get_attribute("href") for one in report.all(".candidates a")]
    assert links[0].endswith("/candidates/clip-1/red/0.mp4")
    assert links[1].endswith("/edits/clip-1/red.mp4")


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_verdicts_stand_out_and_fit_at_390_pixels(report: Report, scheme: str) -> None:
    driver = report.driver
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wanted.items()]
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        report.click("#panel > summary")
        assert report.ask("document.documentElement.scrollWidth") <= 390
        for text in (".verdict.yes p", ".verdict.no p", ".verdict li", ".limit", ".instruction"):
            assert contrast(report, report.find(text)) >= 4.5, text
        report.click("[data-edit=red] .link")
        dialog = report.find("#certificate")
        assert report.ask("arguments[0].scrollWidth - arguments[0].clientWidth", dialog) == 0
        for text in (
            ".candidates td",
            ".candidates a",
            ".candidates thead th",
            ".metric.fails .value",
        ):
            assert contrast(report, report.find(f"#certificate {text}")) >= 4.5, text
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@in_browser
def test_two_runs_show_the_verdicts_of_both(chromium: Any, output: str, tmp_path: Path) -> None:
    here = [scored_row("clip-1", "red", 35.0, 4), scored_row("clip-1", "blue", 35.0, 4)]
    write_rows(str(tmp_path), here)
    decide(str(tmp_path), RULES)
    page = write_report(str(tmp_path), compare=output)
    report = Report(chromium).open(f"file://{page}")
    names = read_summary(str(tmp_path))["compare"]
    assert report.texts("[data-edit=red] .verdict p")[:2] == [
        f"● {names['here']}: Accepted",
        f"○ {names['there']}: Rejected",
    ]
    assert report.texts("[data-edit=red] .verdict")[1].endswith("25 dBjudge.follows >= 32 of 4")
    assert report.texts(".tile.absent .verdict.yes") == [f"● {names['there']}: Accepted"]
