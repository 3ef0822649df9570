"""A stage whose work is done by a rank group.

Each is an actor of Ray Data that reserves all the GPUs of its group and owns the group's processes.
Every stage turns what goes wrong with a row into values of that row, so a failed row passes the
later stages to the results. Only a row that is given back, since the driver takes no new work, has
no row of its own: the driver sees that it is missing.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any, ClassVar, Protocol, cast

from cluster.events.log import EventLog
from cluster.events.record import Happened
from cluster.job import Job
from cluster.metrics.group import GroupMetrics
from cluster.output.attempts import Attempts, History, digest
from cluster.progress import Event
from cluster.ranks.failures import DeadlinePassed, GroupCannotStart, RankGroupFailed
from cluster.ranks.messages import (
    Answer,
    EditVideo,
    Request,
    Start,
    Work,
    joined,
    ran_out_of_memory,
)
from cluster.ranks.owner import RankGroup, rank_command
from cluster.settings import GroupSettings
from cluster.stages.alone import alone_on_the_node
from cluster.stages.environment import rank_environment
from cluster.stages.noted import RequestEvents
from pipeline.errors import ErrorCode
from pipeline.model.checkpoint import EDITING_PARTS, PROMPT_PARTS, open_checkpoint
from pipeline.redaction import log_error
from pipeline.storage import Folder

START_TRIES = 3
"""A group that could not be started so often in a row is broken."""
SMALLEST = 1
"""Branches that go through a block at once."""
START_PAUSE_S = 3.0
"""Before a start after one that failed; after two it is twice as long, and so on."""
HOLD_S = 60.0
"""The longest pause: a broken group tries so often. What it could not read may be back by then."""
POLL_S = 1.0
"""A group that waits asks so often whether it may still start."""


class GivenBack(Exception):
    """A row, or some edits of it, that this group has not begun: the driver takes no new work.

    The text is why the group cannot start, where it cannot.
    """


class Report(Protocol):
    """What the stages say to the driver beside their rows, and the driver to them.

    None of it raises: where the driver cannot be reached, nothing is reported, and work goes on.
    """

    def attend(self, stage: str, doing: Callable[[], str] = str) -> str | None:
        """Say from now on that the stage's process is there, and what it gives as its last step.

        Returns:
            A short name of the process among all owners, where it has one.
        """

    def happened(self, event: Event, times: int = 1) -> None:
        """It is shown while the job runs."""

    def broken(self, reason: str) -> None:
        """This group cannot start. It holds its rows, and tries again now and then."""

    def repaired(self) -> None:
        """This group, which was broken, works again."""

    def may_start(self) -> bool:
        """Whether a row, or the next edits of one, may begin; False: it is given back.

        Blocks while the driver takes no new work. Called before each, and while a broken group
        holds its rows.
        """


class GroupStage:
    """A stage whose work is done by a rank group that this actor owns.

    Args:
        work: what the ranks load.
        report: goes to the driver.
        settings: of the group.
        device: `cpu` or `gpu`.
        threads: of each rank on CPU.
    """

    name: ClassVar[str]
    """What its groups are called; mostly the stage's section of `cluster` in the settings."""

    def __init__(
        self,
        work: Work,
        job: Job,
        report: Report,
        settings: GroupSettings,
        device: str,
        threads: int,
    ) -> None:
        self.work, self.job, self.settings = work, job, settings
        self.device = device
        self.report = report
        self.starting = threading.Lock()
        output, me = Folder(job.editing.output), report.attend(self.name, self._doing)
        self.note = EventLog(output, job.run, "owner", stage=self.name, group=me)
        # Called where Ray lets go of this in order; a kill leaves what was stored until then.
        weakref.finalize(self, self.note.close)
        self.group = RankGroup(
            rank_command(),
            settings.gpus,
            Start(
                work,
                asdict(job.editing),
                device,
                ulysses=settings.ulysses,
                ring=settings.ring,
                cfg=settings.cfg,
                checkpoint=job.checkpoint,
            ),
            start_deadline_s=job.cluster.start_deadline_s,
            stall_deadline_s=job.cluster.stall_deadline_s,
            environment=rank_environment(device, threads),
            note=self.note,
        )
        gpus = settings.gpus if device == "gpu" else 0
        self.metrics = GroupMetrics(job.run, self.name, self.group, gpus)
        self.attempts = Attempts(output, job.run)
        self.fingerprint = job.fingerprint()
        self.failed_starts, self.reason, self.worked = 0, "", False
        self.begin()

    def begin(self) -> None:
        """Start the group. One that cannot start takes no rows: it stays in here, until the driver
        takes no new work."""
        with suppress(GivenBack):
            self._start()

    def _doing(self) -> str:
        """What the group did last; nothing before there is one."""
        return self.group.doing() if hasattr(self, "group") else ""

    def ask(self, request: Request) -> tuple[Answer, int]:
        """The group's answer to a request, and how often it was tried. For two threads at once.

        A group that dies or hangs is rebuilt and asked again, `retries` times; then the answer is
        an error that quarantines the row. The tries are on record (`cluster.output.attempts`), so
        that one that ends this process, or its node, counts as well. A try that ended with a group
        in which another request was at work too is not counted, and from then on the request goes
        alone: a row costs itself only.

        Where the group must be started again since its memory ran out, it and all later ones take
        the smallest parts, and the request is asked once more.

        Raises:
            GivenBack: the driver takes no new work.
        """
        self._wait(0.0)
        history = self.attempts.of(self._digest(request), _what(request))
        events = RequestEvents(self.note, request)
        smaller = 0
        while len(history.charged) <= self.job.cluster.retries:
            self._start()
            events.trying()
            parts = self.group.start_message.branches_at_once
            try:
                with self._beside_no_other(history), self.metrics.at_work():
                    answers = self.group.request(request, alone=history.alone, begin=history.begin)
            except (RankGroupFailed, GroupCannotStart) as error:
                late = isinstance(error, DeadlinePassed)
                code = ErrorCode.DEADLINE if late else ErrorCode.RANK_DIED
                history.failed(code, str(error), charged=error.charged)
                events.failed_try(code, str(error))
                continue
            if parts == SMALLEST or not ran_out_of_memory(answers):
                tries = len(history.charged) + smaller + 1
                history.answered()
                events.answered(answer := joined(answers), tries)
                return answer, tries
            smaller += 1
            events.failed_try(ErrorCode.OUT_OF_MEMORY, "memory ran out: asked with smaller parts")
            start = replace(self.group.start_message, branches_at_once=SMALLEST)
            self.group.start_message = start
        code, text = history.charged[-1].code, history.text()
        events.quarantined(code, text, len(history.charged))
        return Answer(error_code=code, error=f"{text}\n{self._more()}"), len(history.charged)

    @contextmanager
    def _beside_no_other(self, history: History) -> Iterator[None]:
        """Where a request may bring down its node, it is the only such one on it."""
        if not history.takes_its_owner_along:
            yield
            return
        with alone_on_the_node(self.job.editing.output, self._wait):
            yield

    def _start(self) -> None:
        """Start the ranks where there are none, after as many tries as it takes.

        One thread at a time, so that the tries of all have their pauses between them.

        Raises:
            GivenBack: the driver takes no new work.
        """
        with self.starting:
            while not self._started():
                self.failed_starts += 1
                if self.failed_starts == START_TRIES:
                    self.report.broken(self.reason)
                    self.note(Happened.GROUP_BROKEN, message=self.reason)
                self._wait(min(HOLD_S, START_PAUSE_S * self.failed_starts))
            if self.failed_starts >= START_TRIES:
                self.report.repaired()
                self.note(Happened.GROUP_REPAIRED)
            self.failed_starts, self.reason = 0, ""

    def _started(self) -> bool:
        try:
            if not self.worked:
                fetch_checkpoint(self.job, self.work)
            self.group.ready()
        except (GroupCannotStart, RankGroupFailed) as error:
            log_error(error)
            self.reason = str(error)
            self.note(Happened.GROUP_NOT_STARTED, message=self.reason)
            return False
        if not self.worked:
            self.worked = True
            self.report.happened(cast(Event, f"{self.name} ready"))
        return True

    def _wait(self, seconds: float) -> None:
        """Wait, unless the driver takes no new work: see `Report.may_start`.

        Raises:
            GivenBack: it does not.
        """
        until = time.monotonic() + seconds
        while True:
            if not self.report.may_start():
                raise GivenBack(self.reason)
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, POLL_S))

    def _more(self) -> str:
        """Where more of a group's last log lines is than an error has."""
        return f"more of the log: `retake logs OUTPUT --run {self.job.run} --level error`"

    def _digest(self, request: Request) -> str:
        """What a request is, in this run and the next: not what its inversion happened to take."""
        values = asdict(request)
        values.pop("inversion", None)
        return digest(self.fingerprint, type(request).__name__, values)


def _what(request: Request) -> str:
    """What a person calls it."""
    video: Any = getattr(request, "video", None)
    if video is None:
        return "the encoding of prompts"
    edits = ", ".join(str(edit.edit_id) for edit in video.edits)
    return (
        f"{video.video_id}: {f'edits {edits}' if isinstance(request, EditVideo) else 'inversion'}"
    )


def fetch_checkpoint(job: Job, work: Work) -> None:
    """Have on this node what the ranks load: their start has a deadline, a fetch has none.

    Raises:
        GroupCannotStart: it is not to be had.
    """
    if job.checkpoint is None:
        return
    try:
        open_checkpoint(job.checkpoint, parts=PROMPT_PARTS if work == "prompts" else EDITING_PARTS)
    except Exception as error:  # each storage has its own kinds of failure
        raise GroupCannotStart(f"{type(error).__name__}: {error}") from error
