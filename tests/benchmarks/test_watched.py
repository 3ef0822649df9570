"""A screenshot shows what stands on the terminal, and is the same for the same screen."""

import sys

import pyte

from tests.benchmarks.watched import COLUMNS, LINES, screenshots, svg


def test_a_screenshot_shows_what_was_not_erased_in_its_color() -> None:
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    stream.feed(b"loading\r\x1b[2K\x1b[1;31mediting\x1b[0m 4 of 10")
    picture = svg(screen, "retake run")
    assert "loading" not in picture
    assert ">editing</text>" in picture
    assert "4&#160;of&#160;10" in picture
    assert picture == svg(screen, "retake run")
    assert "font-face" not in picture, "it would need a network"


def test_the_last_screenshot_is_that_of_the_end() -> None:
    command = [sys.executable, "-c", "import os; print(os.get_terminal_size(), 'done')"]
    ((_, end),) = screenshots(command, (), "retake run")
    assert f"columns={COLUMNS},&#160;lines={LINES}" in end
    assert "done" in end
