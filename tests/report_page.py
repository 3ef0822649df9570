"""Headless Chromium, and the report's page in it as a person uses it.

Importing this skips the module that does, where selenium is not installed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.drawn_videos import gray_number
from tests.report_results import FPS

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    "disable-component-update disable-sync window-size=1400,1000"
).split()


@contextmanager
def chromium_driver(profile: Path) -> Iterator[Any]:
    """A Chromium with a profile of its own, and logs of what it says and asks for."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


class Report:
    """A page of a report as a person uses it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, address: str) -> Report:
        self.driver.get("about:blank")  # else another fragment of the same page loads nothing
        self.driver.get(address)
        self.wait(lambda: self.ask("performance.getEntriesByName('shown').length"))
        return self

    def ask(self, expression: str, *arguments: Any) -> Any:
        return self.driver.execute_script(f"return {expression}", *arguments)

    def wait(self, done: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, 10, poll_frequency=0.02).until(lambda _: done())

    def find(self, css: str, place: int = 0) -> Any:
        return self.all(css)[place]

    def all(self, css: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def click(self, css: str, place: int = 0) -> None:
        element = self.find(css, place)
        self.ask("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def texts(self, css: str) -> list[str]:
        return self.ask("[...document.querySelectorAll(arguments[0])].map(e => e.textContent)", css)

    def wait_for(self, found: str) -> None:
        self.wait(lambda: self.texts("#count") == [found])

    def cards(self) -> list[str]:
        return self.texts(".card h3")

    def load_clips(self, card: int = 0) -> list[Any]:
        clips = self.all(f".card:nth-child({card + 1}) video")
        assert clips
        self.ask("arguments[0].scrollIntoView({block: 'center'})", clips[0])  # else none is loaded
        self.wait(lambda: self.ask("arguments[0].every(v => v.readyState >= 2)", clips))
        return clips

    def frames(self, clips: list[Any]) -> list[float]:
        """Where clips stand, in frames."""
        return self.ask(f"arguments[0].map(v => v.currentTime * {FPS})", clips)

    def pictures(self, clips: list[Any]) -> list[int]:
        """Which frames clips show, read from their pixels; a page from a disk may not do that."""
        levels = self.ask(
            """arguments[0].map(video => {
              const canvas = new OffscreenCanvas(1, 1).getContext("2d");
              canvas.drawImage(video, 0, 0, 1, 1);
              return canvas.getImageData(0, 0, 1, 1).data[0];
            })""",
            clips,
        )
        return [gray_number(level) for level in levels]


def luminance(color: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, by WCAG 2."""
    numbers = [float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in
              (number / 255 for number in numbers)]  # fmt: skip
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(report: Report, element: Any) -> float:
    """Contrast of an element's text against the nearest ground that is painted behind it."""
    text, ground = report.ask(
        """(element => {
          const clear = "rgba(0, 0, 0, 0)";
          let behind = element;
          while (getComputedStyle(behind).backgroundColor === clear) behind = behind.parentElement;
          return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
        })(arguments[0])""",
        element,
    )
    high, low = sorted((luminance(text), luminance(ground)), reverse=True)
    return (high + 0.05) / (low + 0.05)
