from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.media.counts import FrameRule
from pipeline.media.frames import resample, scaled_size

steady = settings(deadline=None, derandomize=True, max_examples=60)
gaps = st.lists(st.floats(0.001, 2.0), min_size=1, max_size=40)
rates = st.floats(0.2, 120.0)


@steady
@given(st.integers(-5, 500), st.integers(1, 8), st.integers(1, 60))
def test_the_frame_count_is_the_largest_that_the_vae_takes_whole(
    available: int, compression: int, minimum: int
) -> None:
    count = FrameRule(temporal_compression=compression, minimum=minimum).largest_at_most(available)
    accepted = [n for n in range(minimum, available + 1) if n % compression == 1 % compression]
    assert count == (accepted[-1] if accepted else None)


@pytest.mark.parametrize(
    ("available", "count"), [(4, None), (5, 5), (8, 5), (9, 9), (48, 45), (49, 49), (81, 81)]
)
def test_four_frames_are_too_few_and_eight_become_five(available: int, count: int | None) -> None:
    assert FrameRule().largest_at_most(available) == count


def test_latent_frames_are_padded_to_the_temporal_patch() -> None:
    assert FrameRule().latent_frames(81) == 21
    assert FrameRule(latent_multiple=2).latent_frames(81) == 22
    assert FrameRule(latent_multiple=2).latent_frames(85) == 22


@steady
@given(gaps, rates)
def test_each_tick_gets_the_frame_nearest_in_time(durations: list[float], fps: float) -> None:
    frames = timeline(durations)
    starts = [start for start, _, _ in frames]
    for tick, chosen in enumerate(resample(frames, fps)):
        time = starts[0] + tick / fps
        assert abs(starts[chosen] - time) <= min(abs(s - time) for s in starts) + 1e-9


@steady
@given(gaps, rates)
def test_the_ticks_last_as_long_as_the_frames(durations: list[float], fps: float) -> None:
    ticks = sum(1 for _ in resample(timeline(durations), fps))
    assert ticks - (sum(durations) * fps - 0.1) > -1e-6 and ticks - sum(durations) * fps < 1


def test_times_rounded_to_milliseconds_add_no_tick() -> None:
    rounded = [(round(n / 24, 3), 0.042, n) for n in range(48)]
    assert list(resample(rounded, 24)) == list(range(48))


@steady
@given(st.integers(1, 60), rates)
def test_the_sources_own_rate_keeps_every_frame_once(count: int, fps: float) -> None:
    assert list(resample(timeline([1 / fps] * count), fps)) == list(range(count))


def test_a_slower_clock_drops_frames_and_a_faster_one_repeats_them() -> None:
    frames = timeline([0.125] * 8)
    assert list(resample(frames, 4)) == [0, 2, 4, 6]
    assert list(resample(frames, 16)) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]


def test_timestamps_that_jump_back_or_stand_still_do_no_harm() -> None:
    frames = [(0.0, 0.1, "a"), (0.0, 0.1, "b"), (0.5, 0.1, "c"), (0.2, 0.1, "d"), (0.8, 0.2, "e")]
    chosen = list(resample(frames, 5))
    assert (chosen[0], chosen[-1]) == ("a", "e")


def test_resampling_holds_back_one_frame_at_most() -> None:
    taken = []

    def source() -> Iterator[tuple[float, float, int]]:
        for frame in timeline([0.1] * 100):
            taken.append(frame[2])
            yield frame

    clock = resample(source(), 10)
    assert [next(clock) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(taken) <= 6


sides = st.integers(1, 4000)


@steady
@given(sides, sides, sides, sides, st.fractions(Fraction(1, 4), 4, max_denominator=40))
def test_fitting_keeps_the_shape_to_within_half_a_pixel(
    height: int, width: int, box_height: int, box_width: int, pixel_aspect: Fraction
) -> None:
    box = box_height, box_width
    shape = width * pixel_aspect / height
    cover_height, cover_width = scaled_size(height, width, pixel_aspect, box, "crop")
    inside_height, inside_width = scaled_size(height, width, pixel_aspect, box, "pad")
    assert cover_height >= box_height and cover_width >= box_width
    assert inside_height <= box_height and inside_width <= box_width
    for scaled in ((cover_height, cover_width), (inside_height, inside_width)):
        by_height, by_width = scaled[0] * shape, scaled[1] / shape
        assert min(abs(scaled[1] - by_height), abs(scaled[0] - by_width)) <= 0.5 or 1 in scaled
        assert scaled[0] in box or scaled[1] in box


def timeline(durations: list[float]) -> list[tuple[float, float, int]]:
    """Frames that are their own numbers, one after the other from second 3 on."""
    starts = [3.0]
    for duration in durations:
        starts.append(starts[-1] + duration)
    return [(starts[n], duration, n) for n, duration in enumerate(durations)]
