"""An event as a person reads it: one line, and below it the last log lines of a rank."""

from __future__ import annotations

from cluster.events.record import Event

MARKS = {"info": " ", "warning": "!", "error": "X"}
"""Before the name of an event."""


def readable(event: Event) -> str:
    """A line; more where the event has log lines, or a message of several."""
    first, *more = (event.message or "").splitlines() or [""]
    parts = [_clock(event), MARKS.get(event.level, "?"), event.event, *_about(event)]
    line = " ".join(filter(None, parts)) + (f": {first}" if first else "")
    below = [*more, *(f"| {one}" for one in event.lines or ())]
    return "\n".join([line, *(f"    {one}" for one in below)])


def _clock(event: Event) -> str:
    """The time of the day, UTC."""
    return event.time.partition("T")[2].rstrip("Z") or event.time


def _about(event: Event) -> list[str]:
    """What it is about, in short."""
    edits = ", ".join(event.edits or ())
    video = "/".join(filter(None, (event.video_id, event.edit_id)))
    counts = ", ".join(f"{number} {name}" for name, number in (event.counts or {}).items())
    tries = f"{event.tries} tries" if event.tries and event.tries > 1 else ""
    return [
        f"#{event.wave}" if event.wave is not None else "",
        " ".join(filter(None, (video, event.part, f"({edits})" if edits else ""))),
        counts,
        f"node {event.node}" if event.node else "",
        f"{event.seconds:.1f} s" if event.seconds is not None else "",
        tries,
        f"[{event.code}]" if event.code else "",
        _where(event),
    ]


def _where(event: Event) -> str:
    if not event.stage:
        return ""
    rank = f" rank {event.rank}" if event.rank is not None else ""
    group = f" {event.group}" if event.group else ""
    return f"({event.stage}{group}{rank} on {event.host})"
