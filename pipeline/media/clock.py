"""When the frames of a video are shown: their times on one line, and the rate that follows.

Files say how fast they play in two ways: a rate in the header, and a time with each frame. Players
go by the times, so the times decide here too where the two differ. Headers are often wrong: browser
recordings declare 1000 frames a second, and an AVI counts the frames that were dropped. Where they
agree the header's rate is taken, as it is exact (24000/1001) and times are rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

AGREE = Fraction(1, 100)
"""How far the header's duration of the frames may be from that of their times, as a share."""
FASTEST = 1000
"""Frames a second above which times are not believed, as no video is shown so fast."""
LONGEST_JUMP_S = 10
"""A longer step in a format whose clock may jump is a jump; FFmpeg draws the line there too."""
LONGEST_STEP_S = 3600
"""A longer step is a jump in any format: cameras that begin at 0 and go on at the time of day."""
LATEST_S = 1
"""By how much times may run late without a key frame; beyond, another clock has begun."""


class Clock:
    """Places frames on one line of time, in the order in which they are shown.

    Times that are missing follow from the frame before. A clock that starts anew (files that were
    joined, counters that overflow) goes on from the frame before. A time that is a little late
    counts as that of the frame before. Frames are never out of order.

    Args:
        rates: what the header says, in frames a second; the first is what frames without any
            times have. At least one.
        tick: seconds of one unit of the times.
        jumps: the format is one whose clock may jump, such as MPEG-TS.
    """

    def __init__(self, rates: Sequence[Fraction], *, tick: Fraction, jumps: bool = False) -> None:
        self._rates = rates
        self._tick = tick
        self._longest = LONGEST_JUMP_S if jumps else LONGEST_STEP_S
        self._shift = Fraction(0)
        self._before: Fraction | None = None  # the shift, where the clock ran back just now
        self._believed = 1 / rates[0]  # the duration of the frame before, as its file has it
        self._first = self._last = Fraction(0)
        self._placed = 0

    def place(
        self, time: Fraction | None, duration: Fraction, *, key: bool
    ) -> tuple[Fraction, Fraction]:
        """(start, duration) of the next frame, seconds.

        Args:
            time: seconds, as the file has it, if it has one.
            duration: seconds, as the file has it; 0 where it does not.
            key: whether it is a key frame: only with one can another recording begin.
        """
        start = self._start(time, key)
        if duration * FASTEST < 1:
            duration = 1 / self._rates[0]
        # Where the duration of the frame before was far from the time that it was shown, this
        # one's is believed no more.
        believed = (
            not self._placed or abs(start - self._last - self._believed) <= self._believed / 2
        )
        self._believed = duration
        if not self._placed:
            self._first = start
        self._last = start
        self._placed += 1
        return start, duration if believed else self._mean()

    def rate(self, starts: Sequence[Fraction]) -> Fraction:
        """Frames a second of frames that follow each other, by what `place` found for each."""
        steps = len(starts) - 1
        span = starts[-1] - starts[0] if starts else Fraction(0)
        if steps < 1 or span * FASTEST < steps:  # there are no times that tell anything
            return self._rates[0]
        for rate in self._rates:
            if abs(span - steps / rate) <= max(span * AGREE, self._rounding(rate)):
                return rate
        return steps / span

    def _start(self, time: Fraction | None, key: bool) -> Fraction:
        if not self._placed:
            return time or Fraction(0)
        if time is None:
            return self._last + self._believed
        if self._before is not None and 0 <= time + self._before - self._last <= self._longest:
            self._shift = self._before  # one time was wrong, and the clock had only gone on
        self._before = None
        step = time + self._shift - self._last
        if step > self._longest or step < (0 if key else -LATEST_S):
            self._before = self._shift if step < 0 else None
            self._shift += self._mean() - step
            step = self._mean()
        return self._last + max(step, Fraction(0))

    def _mean(self) -> Fraction:
        """The mean step so far, seconds; of a single frame, its duration."""
        if self._placed < 2:
            return self._believed
        return (self._last - self._first) / (self._placed - 1) or 1 / self._rates[0]

    def _rounding(self, rate: Fraction) -> Fraction:
        """By how much the rounding of two times to ticks may change the step between them."""
        return Fraction(0) if (1 / rate / self._tick).denominator == 1 else self._tick
