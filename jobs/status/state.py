"""What is known of a run in its own process. Its display and its heartbeat read it from threads."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cluster.output.holder import user_name
from cluster.progress import Scored
from jobs.status.phases import LOADING, phase_of, waiting_for
from jobs.status.rate import Rate
from jobs.status.record import Ending, Stage, State, Status

if TYPE_CHECKING:
    from cluster.progress import Counts

NOTES = 20
"""So many of the newest notes are passed on."""
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The environment variable by which Ray's job API gives a job its id; the name is Ray's."""
ENDED: dict[Ending, str] = {
    "ok": "ended: all edits are done",
    "failed edits": "ended: some edits failed",
    "scores missing": "ended: some edits have no scores",
    "failed": "ended with an error",
    "stopped": "stopped before its end",
}


class RunState:
    """Takes what becomes known, and gives it as a record.

    Attributes:
        on_change: called after each change of the phase; it must not take time.
    """

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._made, self._settled = Rate(), Rate()
        self._began = self._since = time.monotonic()
        self._first_round = 0
        self._seen_notes = 0
        self._now = Status(
            run="",
            host=socket.gethostname(),
            pid=os.getpid(),
            user=user_name(),
            started_at=_utc(),
            updated_at=_utc(),
            seconds=0.0,
            state="checking",
            phase="",
            ray_address=_address(),
            ray_job=submission_id(os.environ),
        )

    def phase(self, text: str, waiting_for: str = "", state: State | None = None) -> bool:
        """What the run is at from now on; whether that is another phase than before."""
        with self._lock:
            changed = text != self._now.phase
            if changed:
                self._since = time.monotonic()
            self._now = replace(
                self._now, phase=text, waiting_for=waiting_for, state=state or self._now.state
            )
        if changed:
            self.on_change()
        return changed

    def put(self, **values: Any) -> None:
        """Take over fields of the record."""
        with self._lock:
            self._now = replace(self._now, **values)

    def note(self, text: str) -> None:
        with self._lock:
            self._now = replace(self._now, notes=(*self._now.notes, text)[-NOTES:])

    def take(self, counts: Counts) -> tuple[str, ...]:
        """Take over counts; the notes among them that are new."""
        now = time.monotonic()
        with self._lock:
            new = counts.notes[self._seen_notes :]
            self._seen_notes = len(counts.notes)
            self._count(now, counts)
            self._first_round = self._round_of(counts)
            scores = counts.scores or Scored()
            self._now = replace(
                self._now,
                to_score=scores.edits,
                scored=scores.scored,
                accepted=scores.accepted,
                rejected=scores.rejected,
                made=counts.edited,
                failed=counts.failed,
                failed_by_code=dict(counts.errors),
                inverted=counts.inverted,
                prompts=counts.prompts,
                stages=tuple(Stage(g.stage, g.ready, g.total, g.doing) for g in counts.groups),
                failures=counts.failures,
                last_errors=counts.latest,
                notes=(*self._now.notes, *new)[-NOTES:],
            )
            if self._now.state in ("stopping", "ended"):
                return new
        phase = phase_of(counts)
        early = counts.starting or phase == LOADING
        self.phase(phase, waiting_for(phase, counts), "starting" if early else "running")
        return new

    def _count(self, now: float, counts: Counts) -> None:
        # Edits that fail at a group take its time as others do. What the check refuses takes none,
        # and comes before the work that it was listed with.
        settled = counts.edited + counts.failed - counts.refused
        if counts.inverted or settled:
            self._made.count(now, counts.edited)
            self._settled.count(now, settled)

    def _round_of(self, counts: Counts) -> int:
        """Edits that come when each group that makes some has worked on one video."""
        making = [g.total for g in counts.groups if g.stage in ("editing", "reconstruction")]
        edits, videos = self._now.edits or 0, self._now.videos or 0
        return round(sum(making) * max(1.0, edits / videos if videos else 1.0))

    def stops(self, text: str) -> None:
        """The run was asked to end, and does so."""
        if self._now.state != "ended":
            self.phase("stopping", text, "stopping")

    def ends(self, ending: Ending, exit_status: int, error: str | None = None) -> None:
        """The run ends now; what it leaves to do here is little."""
        self.put(ending=ending, exit_status=exit_status, error=error)
        self.phase(ENDED[ending], state="ended")

    def status(self) -> Status:
        """The record as of now."""
        now = time.monotonic()
        with self._lock:
            known, rate, left = self._now, self._made.per_s(now), None
            if known.pending and known.state == "running":
                left = self._settled.left_s(now, known.pending, self._first_round)
            return replace(
                known,
                updated_at=_utc(),
                seconds=round(now - self._began, 1),
                phase_s=round(now - self._since, 1),
                edits_per_s=rate,
                left_s=left,
            )


def submission_id(environment: Mapping[str, str]) -> str | None:
    """Ray's id of the job that this process is; None where Ray's job API did not start it."""
    with suppress(ValueError, TypeError, KeyError):
        found = json.loads(environment.get(SUBMITTED, "null"))["metadata"]["job_submission_id"]
        return str(found)
    return None


def _address() -> str | None:
    from cluster.layout.placement import given_address

    return given_address() or None


def _utc() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
