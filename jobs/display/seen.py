"""`retake status`: what an output folder shows of its run, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.display.plan import end_table
from jobs.display.progress import line_of
from jobs.display.table import table_of
from jobs.display.words import duration, failed_lines
from jobs.errors import counted
from jobs.status.look import FRESH_S, Seen
from jobs.status.record import Status
from jobs.status.totals import Totals
from pipeline.redaction import redacted

AGAIN = "run the same command again to go on"


def as_values(seen: Seen, totals: Totals | None) -> dict[str, Any]:
    """What `retake status --json` prints."""
    status = json.loads(seen.status.as_json()) if seen.status else None
    return {
        "life": seen.life,
        "age_s": seen.age_s,
        "last_sign_s": seen.sign_s,
        "summary": summary(seen),
        "status": status,
        "results": vars(totals) if totals else None,
        "waiting": json.loads(seen.waiting.as_json()) if seen.waiting else None,
    }


def picture(seen: Seen, totals: Totals | None) -> RenderableType:
    """What `retake status` shows."""
    status = seen.status
    parts: list[RenderableType] = [_about(seen)]
    if status is not None and (status.edits is not None or status.notes):
        parts += [
            Text(),
            _end_of(status) if status.state == "ended" else table_of(status, notes=True),
        ]
    if totals is not None:
        parts += [Text(), Text(f"results  {_in_words(totals)}")]
    return Group(*parts)


def summary(seen: Seen) -> str:
    """Whether the run is alive, in a sentence."""
    status, holder = seen.status, seen.holder
    if seen.life == "unknown":
        return "no run is known here; give the folder that the job file calls `output`"
    if seen.life == "ended" and status is not None:
        left = status.pending or 0
        more = f"; {counted(left, 'edit')} left: {AGAIN}" if left else ""
        return f"{status.phase}{more}"
    if seen.life == "alive":
        if status is None:
            who = holder.in_words() if holder else "a run"
            return f"{who} holds the folder, and has written no status yet"
        return f"alive: {_at(status)}"
    if seen.life == "killed":
        return f"killed: its process is gone from this machine; {AGAIN}"
    return f"no sign for {_silence(seen)}; probably killed; {AGAIN}"


def exit_status(seen: Seen, totals: Totals | None) -> int:
    """Of `retake status`: 0 alive or ended well, 3 ended with failed edits, 1 for all else."""
    if seen.life == "alive":
        return 0
    if seen.life == "ended" and seen.status is not None:
        return {"ok": 0, "failed edits": 3, "scores missing": 3}.get(seen.status.ending or "", 1)
    if seen.life == "unknown" and totals is not None:  # of a version that wrote no status
        return 3 if totals.failed else 0
    return 1


def line(seen: Seen) -> str:
    """The same with the numbers, for a log."""
    if seen.life == "alive" and seen.status:
        return f"{line_of(seen.status)} ({_age(seen)})"
    return summary(seen)


def _about(seen: Seen) -> RenderableType:
    rows = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    for name, text in _facts(seen):
        rows.add_row(Text(name, "bold"), Text(redacted(text)))
    return rows


def _facts(seen: Seen) -> Iterator[tuple[str, str]]:
    yield "state", summary(seen)
    if (status := seen.status) is not None:
        where = f"{status.host} (pid {status.pid}, user {status.user})"
        yield "run", f"{status.run or 'not named yet'} on {where}"
        ray = [f"Ray at {status.ray_address}"] if status.ray_address else []
        ray += [f"Ray job {status.ray_job}"] if status.ray_job else []
        if ray:
            yield "ray", ", ".join(ray)
        yield "time", f"{duration(status.seconds)}, since {status.started_at[:19]} UTC"
        if seen.life != "ended":
            yield "updated", _age(seen)
        if status.error:
            yield "error", status.error
    if seen.holder is not None and not seen.holder.run:
        yield "folder", f"held by {seen.holder.in_words()}"
    if seen.waiting is not None:
        waits = seen.waiting
        yield "waiting", f"a run on {waits.host} (pid {waits.pid}) waits for the folder"


def _at(status: Status) -> str:
    about = f": {status.waiting_for}" if status.waiting_for else ""
    return f"{status.phase}{about} (for {duration(status.phase_s)})"


def _age(seen: Seen) -> str:
    if seen.age_s is None:
        return "a moment ago; the clocks of the machines differ"
    if seen.life == "alive" and seen.age_s > FRESH_S:
        return (
            f"{duration(seen.age_s)} ago; the run renews its lease, but its storage took no newer "
            "status"
        )
    return f"{duration(seen.age_s)} ago"


def _silence(seen: Seen) -> str:
    return duration(seen.sign_s) if seen.sign_s is not None else "as long as was watched"


def _end_of(status: Status) -> RenderableType:
    failed = failed_lines(status.failed_by_code, status.failures)
    lines = [Text(redacted(f"  {one}")) for one in failed]
    made = None if status.edits == 0 else (status.inverted, status.made, status.failed)
    table = end_table(made, status.done_before, status.quarantined, status.seconds)
    return Group(table, *([Text("failed:"), *lines] if lines else []))


def _in_words(totals: Totals) -> str:
    codes = ", ".join(f"{code} {number}" for code, number in sorted(totals.failed_by_code.items()))
    failed = f", {totals.failed} failed ({codes})" if totals.failed else ""
    damaged = f"; {counted(totals.damaged, 'file')} damaged" if totals.damaged else ""
    return f"{counted(totals.made, 'edit')} made{failed}{damaged}"
