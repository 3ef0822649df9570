"""Which settings a job could be cheaper with: the same estimate with one of them changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from jobs.plan.record import Saving
from pipeline.settings import EditingSettings, Reconstruction

SHOWN = 3
LEAST = 0.05
"""A change that saves a smaller share is not worth naming."""


def savings_of(
    settings: EditingSettings, flops: Callable[[EditingSettings], int]
) -> tuple[Saving, ...]:
    """The changes that save most, most first.

    Args:
        flops: of the whole job with these settings.
    """
    whole = flops(settings)
    if not whole:
        return ()
    found = [
        Saving(change, 1 - flops(replace(settings, reconstruction=changed)) / whole)
        for change, changed in _changes(settings.reconstruction)
    ]
    worth = sorted((one for one in found if one.share >= LEAST), key=lambda one: -one.share)
    return tuple(worth[:SHOWN])


def _changes(how: Reconstruction) -> Iterator[tuple[str, Reconstruction]]:
    """What a user may change, one thing at a time, with how `--set` says it."""
    start = 1.0 if isinstance(how.start, str) else how.start
    lower = 0.6 if start > 0.6 else 0.4
    if lower < start:
        yield f"reconstruction.start={lower:g}", replace(how, start=lower)
    if how.reference not in ("empty", "none"):
        yield "reconstruction.reference=empty", replace(how, reference="empty")
    if how.reference != "none" and how.inject_steps[1] > 0.5:
        half = (min(how.inject_steps[0], 0.5), 0.5)
        yield f"reconstruction.inject_steps=[{half[0]:g},0.5]", replace(how, inject_steps=half)
    if how.guidance_scale > 1 and how.guidance_steps[1] > 0.2 and not how.dynamic_guidance:
        end = 0.4 if how.guidance_steps[1] > 0.4 else 0.2
        window = (min(how.guidance_steps[0], end), end)
        change = f"reconstruction.guidance_steps=[{window[0]:g},{end:g}]"
        yield change, replace(how, guidance_steps=window)
