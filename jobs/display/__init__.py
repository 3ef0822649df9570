"""What a person sees of a command: a picture that changes on a terminal, else lines; the end."""

from jobs.display.console import SafeConsole, Unfailing, console_of_a_run
from jobs.display.plan import show_end, show_plan
from jobs.display.progress import Progress, line_of
from jobs.display.table import table_of
from jobs.display.ticker import Ticker, show_measuring
from jobs.display.words import duration, failed_lines, per_time

__all__ = [
    "Progress",
    "SafeConsole",
    "Ticker",
    "Unfailing",
    "console_of_a_run",
    "duration",
    "failed_lines",
    "line_of",
    "per_time",
    "show_end",
    "show_measuring",
    "show_plan",
    "table_of",
]
