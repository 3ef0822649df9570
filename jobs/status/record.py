"""The record of a run in `<output>/status.json`: what it does, how far it is, how it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal, cast, get_args

from cluster.progress import Failure
from pipeline.redaction import redacted_values
from pipeline.storage import from_json

NAME = "status.json"
WAITING = "status-waiting.json"
"""That of a run that waits until another one leaves the folder."""
FORMAT = 1
"""Raised when a field changes its meaning; one that is new changes nothing for a reader."""

State = Literal["checking", "waiting for the lease", "starting", "running", "stopping", "ended"]
Ending = Literal["ok", "failed edits", "scores missing", "failed", "stopped"]
"""How a run ended: all made, some edits failed, all made but not all scored, the run itself could
not go on, asked to stop."""


@dataclass(frozen=True)
class Stage:
    """The rank groups of a stage.

    Args:
        name: `prompts`, `inversion`, `reconstruction`, or `editing` for groups that do both of the
            last two.
        ready, total: groups that have loaded what they need, and all.
        doing: what some group did last, as `inversion step 12 of 31`; empty where none says.
    """

    name: str
    ready: int
    total: int
    doing: str = ""


@dataclass(frozen=True)
class Status:
    """A run as it was at `updated_at`. Times are UTC by the clock of the run's machine.

    Args:
        run: its name, as in the results; empty until it holds the output folder.
        host, pid, user: where its driver runs, and whose it is.
        started_at, updated_at: ISO 8601.
        seconds: that it has run.
        state: what it is at; `ended` is the last.
        phase: the same for people, as `loading`; with what is waited for in `waiting_for`.
        phase_s: seconds since the phase began.
        ray_address: of the cluster that it joined; None where it starts Ray itself.
        ray_job: Ray's submission id, where Ray's job API started the run.
        edits: to make in this run; None until they are counted.
        videos: that these are of.
        made, failed: edits, of `edits`.
        failed_by_code: how many failed with each error code.
        done_before, quarantined: edits that earlier runs made, and gave up.
        inverted: videos inverted, or found inverted.
        prompts: encoded, or found encoded.
        to_score, scored: edits whose scores the run is to measure, as far as they are known, and
            those that have them; 0 for a job that measures none.
        accepted, rejected: in this run, by the job's rules.
        stages: with rank groups.
        edits_per_s: over the last minutes; None until it can be known.
        left_s: seconds left; None until they can be known.
        failures: the first few of each code; `last_errors` the last of all.
        notes: what a user should know, the newest last.
        stop_grace_s: what running work gets to end once the run is to stop.
        ending, exit_status, error: how the run ended; None before.
        version: of this format.
    """

    run: str
    host: str
    pid: int
    user: str
    started_at: str
    updated_at: str
    seconds: float
    state: State
    phase: str
    waiting_for: str = ""
    phase_s: float = 0.0
    ray_address: str | None = None
    ray_job: str | None = None
    edits: int | None = None
    videos: int | None = None
    made: int = 0
    failed: int = 0
    failed_by_code: Mapping[str, int] = field(default_factory=dict)
    done_before: int = 0
    quarantined: int = 0
    inverted: int = 0
    prompts: int = 0
    to_score: int = 0
    scored: int = 0
    accepted: int = 0
    rejected: int = 0
    stages: tuple[Stage, ...] = ()
    edits_per_s: float | None = None
    left_s: float | None = None
    failures: tuple[Failure, ...] = ()
    last_errors: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()
    stop_grace_s: float = 0.0
    ending: Ending | None = None
    exit_status: int | None = None
    error: str | None = None
    version: int = FORMAT

    def as_json(self) -> bytes:
        """The file, without secrets."""
        return json.dumps(redacted_values(asdict(self)), indent=1, ensure_ascii=False).encode()

    @classmethod
    def parse(cls, data: bytes) -> Status | None:
        """The record of a file; None where it is damaged, or of a format that is not known.

        Fields of a later version are left out.
        """
        try:
            values = from_json(data)
            if values.get("version") != FORMAT or values["state"] not in get_args(State):
                return None
            known = {one.name: values[one.name] for one in fields(cls) if one.name in values}
            for time in ("started_at", "updated_at"):
                if datetime.fromisoformat(known[time]).tzinfo is None:
                    return None
            known["stages"] = tuple(_made(Stage, one) for one in known.get("stages", ()))
            for name in ("failures", "last_errors"):
                known[name] = tuple(_made(Failure, one) for one in known.get(name, ()))
            known["notes"] = tuple(map(str, known.get("notes", ())))
            return cls(**known)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    @property
    def updated(self) -> datetime:
        return datetime.fromisoformat(self.updated_at).astimezone(UTC)

    @property
    def pending(self) -> int | None:
        """Edits of this run without a result."""
        return None if self.edits is None else max(0, self.edits - self.made - self.failed)


def _made(kind: type, values: Mapping[str, Any]) -> Any:
    names = {one.name for one in fields(cast(Any, kind))}
    return kind(**{name: value for name, value in values.items() if name in names})
