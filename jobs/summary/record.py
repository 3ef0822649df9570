"""What `summary.json` holds: its JSON and its tables in the documentation follow from here.

Importing this costs neither torch nor Ray.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from pipeline.records import Forwards, Timings

FILE = "summary.json"
"""Its name in the output folder."""


@dataclass(frozen=True)
class CodeCount:
    """How many edits have no result for one reason.

    Args:
        code: the error code.
        edits: that failed or were quarantined with it.
    """

    code: str
    edits: int


@dataclass(frozen=True)
class RuleCount:
    """How many edits a rule of `accept` rejects.

    Args:
        rule: as the job has it.
        edits: that it rejects, those with them whose number is missing.
    """

    rule: str
    edits: int


@dataclass(frozen=True)
class ScoreWork:
    """The scoring of the last run.

    Args:
        edits: that lacked a score, stored by this run and by earlier ones.
        scored: of these.
        with_errors: scored ones of which some measure failed, as their rows say.
        missing: that the run has given up; the next one tries again.
        seconds: that scoring took, of all actors together, without the loading of models.
    """

    edits: int
    scored: int
    with_errors: int
    missing: int
    seconds: float


@dataclass(frozen=True)
class Throughput:
    """Edits over time, by when their rows were finished.

    Args:
        starts_at: when the first bucket begins.
        bucket_s: seconds of each.
        ok: edits made in each bucket.
        failed: edits that failed or were quarantined in each.
    """

    starts_at: datetime
    bucket_s: float
    ok: tuple[int, ...]
    failed: tuple[int, ...]


@dataclass(frozen=True)
class SlowEdit:
    """An edit that took long.

    Args:
        video_id: of its video.
        edit_id: its own.
        seconds: its share of the work, all parts.
        parts: the same by part.
    """

    video_id: str
    edit_id: str
    seconds: float
    parts: Timings


@dataclass(frozen=True)
class Stage:
    """How much of their time the rank groups of a stage worked on rows.

    Args:
        stage: `editing` where groups make all of a video, else `inversion` and `reconstruction`.
        groups: how many the run had at its end.
        gpus: of each group; 0 on CPUs.
        busy_s: seconds of groups at the model: the parts encode, invert, round_trip, reconstruct
            and decode of the run's rows, as far as they are the stage's. Waiting for a source,
            loading and tries that killed their group are not in it.
        held_s: seconds of the run times the groups, its start and its loading with them. Too much
            where groups came late, too little where some left.
    """

    stage: str
    groups: int
    gpus: int
    busy_s: float
    held_s: float


@dataclass(frozen=True)
class Compared:
    """A figure of a run beside that of its plan.

    Args:
        planned: before the run began; null where it could not be.
        actual: what it took; null where nothing tells.
        ratio: actual over planned; null without one of them.
    """

    planned: float | None = None
    actual: float | None = None
    ratio: float | None = None

    @classmethod
    def of(cls, planned: float | None, actual: float | None) -> Compared:
        ratio = actual / planned if planned and actual is not None else None
        return cls(planned, actual, ratio)


@dataclass(frozen=True)
class Against:
    """The plan of the last run, made when it began, and what the run took.

    It is that of `retake plan` with clips as long as the settings allow, for all that was pending.

    Args:
        gpu: the kind of GPU that the hours are planned for; null where the nodes named none that
            is known, or several.
        basis: of its speed: `measured` or `assumed`.
        edits: planned, and made.
        forwards: of the transformer.
        gpu_hours: that groups compute, and that rows held their GPUs.
        wall_hours: of the work, and of the run with its start and its end.
        storage_bytes: of trajectories and edits, without sources and prompts.
        memory_bytes: the peak of a rank's GPU.
    """

    gpu: str | None = None
    basis: str | None = None
    edits: Compared = field(default_factory=Compared)
    forwards: Compared = field(default_factory=Compared)
    gpu_hours: Compared = field(default_factory=Compared)
    wall_hours: Compared = field(default_factory=Compared)
    storage_bytes: Compared = field(default_factory=Compared)
    memory_bytes: Compared = field(default_factory=Compared)


@dataclass(frozen=True)
class Totals:
    """The sums over the newest rows of edits: those that a later run replaced are not among them.

    Args:
        runs: the names of the runs that wrote the rows, oldest first; at most the last 100.
        started_at: when the first of them began, by the clock of its driver.
        ended_at: when the last row was finished, by the clock of its node.
        videos: that have rows.
        edits: rows, of any status.
        ok, failed, quarantined: edits by status.
        failures: edits that are not ok by error code, most first.
        scored: edits that have scores of some kind.
        accepted, rejected: edits by what the job's rules say.
        rejections: edits by the rule that rejects them, most first; one may be in several.
        retried: edits for which the group was asked more than once.
        more_tries: how often it was asked beyond once, of all edits.
        size_bytes: of the edited videos.
        trajectory_bytes: that were stored of trajectories.
        memory_bytes: the most that a rank held of its GPU; 0 on CPUs.
        timings: seconds by part of the work.
        gpu_seconds: that rows held their GPUs, the sum of the rows' `gpu_seconds`.
        forwards: that were computed.
        planned: forwards that the plan asks for: those of the edits that are ok, with the job's
            guidance scale, and of a whole inversion of each video that was inverted. Null where the
            job's settings cannot be read.
        inverted: videos for which an inversion was computed.
        reused: videos with edits that are ok, whose trajectory was there before.
        wasted_seconds, wasted_gpu_seconds, wasted_forwards: the part of rows that are not ok.
        throughput: edits over time; null without rows.
        slowest: the 10 edits that took longest.
    """

    runs: tuple[str, ...] = ()
    started_at: datetime | None = None
    ended_at: datetime | None = None
    videos: int = 0
    edits: int = 0
    ok: int = 0
    failed: int = 0
    quarantined: int = 0
    failures: tuple[CodeCount, ...] = ()
    scored: int = 0
    accepted: int = 0
    rejected: int = 0
    rejections: tuple[RuleCount, ...] = ()
    retried: int = 0
    more_tries: int = 0
    size_bytes: int = 0
    trajectory_bytes: int = 0
    memory_bytes: int = 0
    timings: Timings = field(default_factory=Timings)
    gpu_seconds: float = 0.0
    forwards: Forwards = field(default_factory=Forwards)
    planned: Forwards | None = None
    inverted: int = 0
    reused: int = 0
    wasted_seconds: float = 0.0
    wasted_gpu_seconds: float = 0.0
    wasted_forwards: float = 0.0
    throughput: Throughput | None = None
    slowest: tuple[SlowEdit, ...] = ()

    @property
    def seconds(self) -> float:
        """From the start to the end."""
        if not self.started_at or not self.ended_at:
            return 0.0
        return max(0.0, (self.ended_at - self.started_at).total_seconds())


@dataclass(frozen=True)
class Summary:
    """How a job went, in its last run and in all of them.

    Args:
        retake: the version that wrote it.
        last: the sums over the rows of the last run.
        all: the sums over all rows.
        seconds: that the last run took, its start and its end with it, but not its wait for another
            run; null where only its rows are known, as after a run that was killed or stopped.
        stages: how busy the last run's groups were; empty where `seconds` is null.
        plan: of the last run, beside what it took; null where none could be made, or `seconds` is
            null.
        scoring: of the last run; null where it scored nothing, or `seconds` is null.
    """

    retake: str
    last: Totals
    all: Totals
    seconds: float | None = None
    stages: tuple[Stage, ...] = ()
    plan: Against | None = None
    scoring: ScoreWork | None = None
