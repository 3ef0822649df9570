"""A stage whose work is done by a rank group.

Each is an actor of Ray Data that reserves all the GPUs of its group and owns the group's processes.
Every stage turns what goes wrong with a row into values of that row, so a row never vanishes: a
failed one passes the later stages to the results.
"""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, replace
from typing import ClassVar, NoReturn, Protocol, cast

from cluster.job import Job
from cluster.progress import Event
from cluster.ranks.failures import DeadlinePassed, GroupCannotStart, RankGroupFailed
from cluster.ranks.messages import Answer, Request, Start, Work, joined, ran_out_of_memory
from cluster.ranks.owner import RankGroup, rank_command
from cluster.settings import GroupSettings
from cluster.stages.environment import rank_environment
from pipeline.errors import ErrorCode
from pipeline.model.checkpoint import EDITING_PARTS, PROMPT_PARTS, open_checkpoint

START_TRIES = 3
"""A group that had worked and could not be started so often in a row ends the job."""
SMALLEST = 1
"""Branches that go through a block at once."""
START_PAUSE_S = 10.0
"""Before a start after one that failed; after two it is twice as long. What the group could not
read may be back by then."""


class Report(Protocol):
    """What the stages report to the driver beside their rows."""

    def happened(self, event: Event, times: int = 1) -> None:
        """It is shown while the job runs."""

    def broken(self, reason: str) -> None:
        """The stage's ranks cannot work at all: the job is going to fail for this reason."""


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
        )
        # An exception here would reach the driver as text, after tries of Ray's own: it waits for
        # the first row.
        self.broken: Exception | None = None
        self.begin()

    def begin(self) -> None:
        """Start the group for the first time; a failure ends the job."""
        try:
            fetch_checkpoint(self.job, self.work)
            self.group.start()
            self.report.happened(cast(Event, f"{self.name} ready"))
        except (GroupCannotStart, RankGroupFailed) as error:
            self.broken = error

    def ask(self, request: Request) -> tuple[Answer, int]:
        """The group's answer to a request, and how often it was tried. For two threads at once.

        A group that dies or hangs is rebuilt and asked again, `retries` times; then the answer is
        an error that quarantines the row. A rebuild that fails is a try like any other. A try that
        ended with a group in which another request was at work too is not counted, and from then on
        the request goes alone: a row costs itself only.

        Where the group must be started again since its memory ran out, it and all later ones take
        the smallest parts, and the request is asked once more.

        Raises:
            GroupCannotStart, RankGroupFailed: the group could not be started at all, or not again,
                for several tries; the driver has the reason.
        """
        if self.broken:
            self._give_up(self.broken)
        tries, again, smaller = 0, False, 0
        while True:
            parts = self.group.start_message.branches_at_once
            try:
                self._start_where_it_ended()
                answers = self.group.request(request, alone=again)
                if parts == SMALLEST or not ran_out_of_memory(answers):
                    return joined(answers), tries + smaller + 1
                smaller += 1
                start = replace(self.group.start_message, branches_at_once=SMALLEST)
                self.group.start_message = start
            except (RankGroupFailed, GroupCannotStart) as error:
                again = True
                tries += error.charged
                refused = self.group.failed_starts
                if refused >= START_TRIES:
                    self._give_up(error)
                if tries > self.job.cluster.retries:
                    late = isinstance(error, DeadlinePassed)
                    code = ErrorCode.DEADLINE if late else ErrorCode.RANK_DIED
                    text = f"the group could not start again: {error}" if refused else str(error)
                    return Answer(error_code=code, error=f"{text} (tried {tries} times)"), tries

    def _start_where_it_ended(self) -> None:
        """One thread at a time, so that the tries of all have their pauses between them."""
        with self.starting:
            time.sleep(START_PAUSE_S * self.group.failed_starts)
            self.group.ready()

    def _give_up(self, error: Exception) -> NoReturn:
        self.broken = error
        self.report.broken(str(error))
        raise error


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
