"""The plan of a job as one object of JSON, for machines.

The figures of the first kind of GPU stand at the top; those of all of them in `kinds`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from cluster.estimate.record import GpuPlan, JobPlan
from cluster.estimate.storage import BITS_A_PIXEL
from jobs.errors import counted
from jobs.plan.record import Planned
from pipeline.redaction import redacted

OF_A_KIND = ("memory_bytes", "groups", "gpu_hours", "wall_hours", "price")
"""Figures of a kind of GPU that stand at the top, too."""


def as_json(planned: Planned) -> str:
    return json.dumps(values_of(planned), indent=2, ensure_ascii=False)


def values_of(planned: Planned) -> dict[str, Any]:
    """The plan as plain values."""
    seen = planned.seen
    return {
        "job": redacted(planned.job),
        "checkpoint": redacted(planned.checkpoint),
        **_plan(planned.plan),
        "basis": basis_of(planned),
        "sample": None if planned.trial is None else _plan(planned.trial),
        "done": planned.done,
        "quarantined": planned.quarantined,
        "clips_seen": {**asdict(seen), "why": redacted(seen.why), "late": seen.late},
        "savings": [asdict(one) for one in planned.savings],
        "notes": [redacted(note) for note in (*planned.notes, *planned.plan.notes)],
    }


def _plan(plan: JobPlan) -> dict[str, Any]:
    values = asdict(plan)
    values["kinds"] = [_kind(kind) for kind in plan.kinds]
    first = values["kinds"][0] if plan.kinds else dict.fromkeys(OF_A_KIND)
    return values | {name: first[name] for name in OF_A_KIND}


def _kind(kind: GpuPlan) -> dict[str, Any]:
    return asdict(kind) | {"groups": kind.groups}


def basis_of(planned: Planned) -> dict[str, str]:
    """Where each figure comes from: `counted`, `measured` or `assumed`, with the reason."""
    first = planned.plan.kinds[0].gpu if planned.plan.kinds else None
    speed = f"{first.basis}: {first.source}" if first else "no kind of GPU"
    by_counting = dict.fromkeys(
        ("videos", "edits", "prompts", "tokens", "forwards", "flops", "memory_bytes", "groups"),
        "counted",
    )
    hours = dict.fromkeys(("gpu_hours", "wall_hours", "price"), speed)
    storage = f"counted; edits and sources assumed: {BITS_A_PIXEL} bits a pixel"
    return by_counting | hours | {"storage_bytes": storage, "clip": clips_in_words(planned)}


def clips_in_words(planned: Planned) -> str:
    """How it is known how long clips are."""
    seen = planned.seen
    if not seen.frames:
        return "assumed: the longest that the job allows; no video was opened"
    shortest, longest = seen.frames[0], seen.frames[-1]
    span = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
    mean = sum(seen.frames) / len(seen.frames)
    also = "" if shortest == longest else f", {mean:.1f} in the mean"
    return f"measured: {counted(len(seen.frames), 'video')} opened, {span} frames{also}"
