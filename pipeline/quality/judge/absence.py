"""A server that is not there: after some pairs without it, the others go on without waiting."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pipeline.quality.judge.answer import NoAnswer
from pipeline.redaction import log

MOST_MISSED = 3
"""Pairs in a row that a server may fail before the next ones do not ask it."""
PAUSE_S = 60.0
"""After so long one pair asks again."""


@dataclass
class Absence:
    """How often in a row a server failed for reasons that are not the pair's.

    Args:
        pause_s: seconds between attempts once it is taken for absent.
        missed_in_a_row: so often.
    """

    pause_s: float = PAUSE_S
    missed_in_a_row: int = 0
    _last: NoAnswer | None = None
    _next: float = 0.0

    def check(self) -> None:
        """Whether to ask.

        Raises:
            NoAnswer: the server was not there for the last pairs, and it is not time to try again.
        """
        if self.missed_in_a_row >= MOST_MISSED and time.monotonic() < self._next:
            raise NoAnswer(
                f"not asked: the judge failed {self.missed_in_a_row} times in a row; the last "
                f"time: {self._last}"
            )

    def missed(self, error: NoAnswer) -> None:
        """The server failed."""
        self.missed_in_a_row += 1
        self._last = error
        self._next = time.monotonic() + self.pause_s
        if self.missed_in_a_row == MOST_MISSED:
            log(
                f"The judge failed {MOST_MISSED} times in a row: {error}. Other pairs go on "
                f"without it; it is tried again every {self.pause_s:g} s, and what is left "
                "unjudged is judged by the next run."
            )

    def met(self) -> None:
        """The server answered."""
        if self.missed_in_a_row >= MOST_MISSED:
            log("The judge answers again.")
        self.missed_in_a_row = 0
