"""How quickly edits come, and when it can be known how long the others take."""

from __future__ import annotations

from collections import deque

WINDOW_S = 300.0
"""The rate is that of the edits of so many seconds, or of the last that came before these."""
ENOUGH = 3
"""From so many edits on there is a rate."""


class Rate:
    """Edits a second, of the last ones.

    Edits come in bursts, those of a group together and of all groups about together. So the rate is
    counted from one arrival to another, and over several of them where they are near.
    """

    def __init__(self) -> None:
        self.arrivals: deque[tuple[float, int]] = deque()
        """When edits came, and how many there were then; the first is the start, with none."""

    def count(self, now: float, edits: int) -> None:
        """There are so many edits now. The first call is the start."""
        if not self.arrivals or edits > self.arrivals[-1][1]:
            self.arrivals.append((now, edits))
        while len(self.arrivals) > 1 and self.arrivals[1][0] <= self.arrivals[-1][0] - WINDOW_S:
            self.arrivals.popleft()

    def per_s(self, now: float) -> float | None:
        """None where it cannot be known yet. It falls when edits stay away for long."""
        if len(self.arrivals) < 2:
            return None
        (first, before), (last, edits) = self.arrivals[0], self.arrivals[-1]
        span = max(last - first, now - last)
        return (edits - before) / span if edits - before >= ENOUGH and span else None

    def left_s(self, now: float, left: int, first_round: int) -> float | None:
        """Seconds that so many edits take.

        Args:
            first_round: edits that all groups give when each has worked once. Until more have come
                nobody knows how long a group takes from one to the next.

        Returns:
            None where it cannot be known yet.
        """
        if not self.arrivals or self.arrivals[-1][1] <= first_round:
            return None
        rate = self.per_s(now)
        return left / rate if rate else None
