"""Screenshots of a command on a terminal, at given moments, as SVG.

    python -m tests.benchmarks.watched --at 5 60 300 --to docs/ -- retake run job.yaml

runs the command in a terminal of 100 columns and 30 lines of its own, and writes `watched-1.svg`
and so on: what stands on it so many seconds after the start, and at the end. The same screen gives
the same bytes.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import pyte
from rich.color import ColorParseError
from rich.console import Console
from rich.style import Style
from rich.text import Text

COLUMNS, LINES = 100, 30
RICH_COLORS = {"brown": "yellow", "brightbrown": "bright_yellow"}


def screenshots(
    command: Sequence[str], moments_s: Sequence[float], title: str
) -> Iterator[tuple[float, str]]:
    """The moments at which the screen was taken, the end of the command last, and it as SVG."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    owner, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": ""}
    environment.pop("COLUMNS", None)
    with subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
        start_new_session=True,
    ):
        os.close(terminal)
        began = time.monotonic()
        for moment in sorted(moments_s):
            if not _feed(stream, owner, began + moment):
                break
            yield moment, svg(screen, title)
        _feed(stream, owner, float("inf"))
        yield time.monotonic() - began, svg(screen, title)
    os.close(owner)


def _feed(stream: pyte.ByteStream, owner: int, until: float) -> bool:
    """Have the terminal show what the command prints, until a moment; False at its end."""
    while (left := until - time.monotonic()) > 0:
        if select.select([owner], [], [], min(left, 60.0))[0]:
            try:
                data = os.read(owner, 1 << 16)
            except OSError:  # the last process has closed the terminal
                return False
            if not data:
                return False
            stream.feed(data)
    return True


def svg(screen: pyte.Screen, title: str) -> str:
    """The picture of a screen: always of the same size, and without fonts from elsewhere."""
    console = Console(
        record=True, width=screen.columns, height=screen.lines, file=io.StringIO(), emoji=False
    )
    for number in range(screen.lines):
        line = Text()
        cells = [screen.buffer[number][column] for column in range(screen.columns)]
        for (color, bold), some in groupby(cells, lambda cell: (cell.fg, cell.bold)):
            line.append("".join(cell.data for cell in some), _style(color, bold=bold))
        console.print(line, no_wrap=True, overflow="crop")
    made = console.export_svg(title=title, unique_id="watched")
    return re.sub(r"@font-face \{.*?\}\s*", "", made, flags=re.DOTALL)


def _style(color: str, *, bold: bool) -> Style:
    """As Rich names it."""
    name = RICH_COLORS.get(color, re.sub("^bright(?=[a-z])", "bright_", color))
    if re.fullmatch("[0-9a-f]{6}", name):
        name = f"#{name}"
    try:
        return Style(color=None if name == "default" else name, bold=bold)
    except ColorParseError:
        return Style(bold=bold)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--at", type=float, nargs="+", required=True, metavar="SECONDS")
    parser.add_argument("--to", type=Path, default=Path())
    parser.add_argument("--name", default="watched", help="how the files' names begin")
    parser.add_argument("--title", help="of the window; by default the command")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    title = given.title or " ".join(given.command)
    for number, (moment, picture) in enumerate(screenshots(given.command, given.at, title), 1):
        path = given.to / f"{given.name}-{number}.svg"
        path.write_text(picture)
        print(f"{path}: after {moment:.0f} s", flush=True)


if __name__ == "__main__":
    main()
