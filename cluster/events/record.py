"""An event: one line of JSON in a run's log. Which events there are is declared here, once.

Importing this costs neither torch nor Ray.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, Protocol

from pipeline.redaction import redacted

Level = Literal["info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("info", "warning", "error")
Process = Literal["driver", "owner", "rank"]
LINES = 50
"""The last log lines of a rank that an event has at most."""
LINE = 500
"""Characters of each of them."""
MESSAGE = 4_000
"""Characters of a message."""
OWNER = 8
"""Characters of Ray's id of an owner that tell it from others."""


def short_name(owner: str) -> str:
    """What events call the group of an owner, by Ray's id of it."""
    return owner[:OWNER]


class Happened(StrEnum):
    """What an event says: its name in the log, its level, and when it is written."""

    level: Level
    text: str

    def __new__(cls, name: str, level: Level, text: str) -> Happened:
        one = str.__new__(cls, name)
        one._value_, one.level, one.text = name, level, text
        return one

    # the driver
    RUN_BEGAN = "run began", "info", "A run begins; `counts` has what is pending."
    JOB_PLANNED = "job planned", "info", "The layout and the groups of the run are chosen."
    WAVE_BEGAN = "wave began", "info", "Rows go to Ray Data; `counts` has how many."
    WAVE_ENDED = "wave ended", "info", "A wave is over; `counts` has the edits left for the next."
    ROWS_LEFT = "rows left", "warning", "Videos of a wave came back without all of their results."
    NODE_CAME = "node came", "info", "The cluster has a node more than before."
    NODE_LEFT = "node left", "warning", "A node of the cluster is gone."
    OWNER_ENDED = "owner ended", "warning", "The owner of a group was silent, and is killed."
    RESULTS_STORED = "results stored", "info", "Result rows are in a file of `results/`."
    RESULTS_JOINED = "results joined", "info", "Small files of results were put together."
    SCORES_MADE = "scores made", "info", "A wave of scoring is over; `counts` has its edits."
    SCORES_MISSING = "scores missing", "warning", "Edits are left without scores, as said."
    STORAGE_TROUBLE = "storage trouble", "warning", "Results cannot be stored; it is tried again."
    STORAGE_BACK = "storage back", "info", "Results can be stored again."
    STOP_ASKED = "stop asked", "warning", "The run is asked to end in order, as by a signal."
    STOP_DONE = "stop done", "info", "A run that was to stop has stored what was finished."
    RUN_ENDED = "run ended", "info", "The last event; `counts` has what was done. Or why it failed."
    # a group
    GROUP_STARTING = "group starting", "info", "The ranks of a group are started."
    GROUP_RESTARTING = "group restarting", "warning", "They are started again, after an end."
    GROUP_READY = "group ready", "info", "All ranks have loaded what they need."
    GROUP_NOT_STARTED = "group not started", "error", "The ranks could not start."
    GROUP_DIED = "group died", "error", "All ranks were ended, since one died or cannot go on."
    GROUP_ENDED = "group ended", "info", "All ranks were ended, and had no work."
    GROUP_STALLED = (
        "group stalled",
        "error",
        "They were ended: no rank made progress in time.",
    )
    GROUP_BROKEN = (
        "group broken",
        "error",
        "It could not start several times, and takes no rows.",
    )
    GROUP_REPAIRED = "group repaired", "info", "A group that was broken works again."
    # a rank
    RANK_DIED = "rank died", "error", "Its process ended while it worked, as `code` says."
    RANK_ENDED = (
        "rank ended",
        "info",
        "Its process ended without work, as where Ray ends what a wave no longer needs.",
    )
    RANK_LATE = "rank late", "error", "A rank of a group that stalled, or was not ready in time."
    RANK_REFUSED = "rank refused", "error", "A rank says that it cannot work at all."
    RANK_FAILED = "rank failed", "error", "A rank met an error that is not the video's."
    # a video and its edits
    VIDEO_BEGUN = "video begun", "info", "A group is asked for a `part` of a video."
    VIDEO_DONE = "video done", "info", "The part is done; `seconds` that it held the group."
    VIDEO_FAILED = "video failed", "error", "The part could not be done."
    PROMPTS_ENCODED = "prompts encoded", "info", "Embeddings of prompts are stored."
    PROMPTS_FAILED = "prompts failed", "error", "Prompts could not be encoded."
    RETRY = "retry", "warning", "A group is asked again; the message says why."
    QUARANTINED = "quarantined", "error", "All tries of a video's part are used up."
    EDIT_STORED = "edit stored", "info", "An edit is in `edits/`."
    EDIT_FAILED = "edit failed", "error", "An edit has a result without a video."
    # the log
    EVENTS_DROPPED = "events dropped", "warning", "So many were not written: storage took none."


@dataclass(frozen=True)
class Event:
    """One line of a log. A field that does not apply is left out of the line.

    Args:
        time: when; UTC, ISO 8601 with milliseconds.
        level: `info`, `warning` or `error`.
        event: its name, one of the table.
        run: the run, as results name it.
        process: what it happened to: the `driver`, an `owner` with its group, or a `rank`.
        host: where.
        pid: of the process that wrote the line.
        stage: of the group: `prompts`, `inversion`, `reconstruction` or `editing`.
        group: the short name of the group's owner.
        rank: its number in the group.
        wave: the number of the wave, from 1 on.
        node: the node that came, left, or is meant.
        video_id, edit_id: as results have them.
        part: of a video: `inversion` or `edits`.
        edits: the ids of the edits that the part makes.
        tries: how often a group was asked.
        seconds: how long it took.
        code: the error code of the results; of a rank that died, its exit status or signal.
        counts: numbers by their names.
        message: a sentence, or what an error says.
        lines: the last log lines of the rank.
    """

    time: str
    level: Level
    event: str
    run: str
    process: Process | None = None
    host: str | None = None
    pid: int | None = None
    stage: str | None = None
    group: str | None = None
    rank: int | None = None
    wave: int | None = None
    node: str | None = None
    video_id: str | None = None
    edit_id: str | None = None
    part: str | None = None
    edits: Sequence[str] | None = None
    tries: int | None = None
    seconds: float | None = None
    code: str | None = None
    counts: Mapping[str, int] | None = None
    message: str | None = None
    lines: Sequence[str] | None = None

    def to_line(self) -> bytes:
        """The line of the log: JSON without line breaks, and without secrets."""
        safe = replace(
            self,
            # Before anything is cut off: the beginning of a secret looks like none.
            message=(redacted(self.message) or "")[:MESSAGE] or None,
            lines=_safe_lines(self.lines),
        )
        values = {f.name: getattr(safe, f.name) for f in fields(safe)}
        held = {name: value for name, value in values.items() if value is not None}
        return json.dumps(held, ensure_ascii=False, default=str).encode(errors="replace") + b"\n"

    def size(self) -> int:
        """Bytes of memory, about."""
        return 500 + len(self.message or "") + sum(len(line) for line in self.lines or ())


class Note(Protocol):
    """What takes events. It never raises, and never waits for storage."""

    def __call__(self, event: Happened, /, **about: Any) -> None:
        """Take an event.

        Args:
            about: fields of `Event`.
        """


def ignore(event: Happened, /, **about: Any) -> None:
    """A `Note` that keeps nothing."""


def now() -> str:
    """The time as events have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_line(line: bytes) -> Event | None:
    """The event of a line; None where it is none, as where its writer was killed in it.

    Fields that this version does not know are left out.
    """
    try:
        values = json.loads(line)
        return Event(**{name: values[name] for name in values if name in _FIELDS})
    except (ValueError, TypeError):
        return None


_FIELDS = frozenset(field.name for field in fields(Event))


def _safe_lines(lines: Sequence[str] | None) -> list[str] | None:
    if not lines:
        return None
    # Together: a key may have many lines.
    safe = redacted("\n".join(lines)).split("\n")
    return [line[:LINE] for line in safe[-LINES:]]
