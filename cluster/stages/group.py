"""A stage whose work is done by a rank group.

Each is an actor of Ray Data that reserves all the GPUs of its group and owns the group's processes.
Every stage turns what goes wrong with a row into values of that row, so a row never vanishes: a
failed one passes the later stages to the results.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import ClassVar, NoReturn, Protocol, cast

from cluster.job import Job
from cluster.progress import Event
from cluster.ranks.messages import Answer, Request, Start, Work
from cluster.ranks.owner import (
    DeadlinePassed,
    GroupCannotStart,
    RankGroup,
    RankGroupFailed,
    rank_command,
)
from cluster.settings import GroupSettings
from pipeline.errors import ErrorCode

START_TRIES = 3
"""A group that had worked and could not be started so often in a row ends the job."""
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
        deadline_s: for one request.
        threads: of each rank on CPU.
    """

    name: ClassVar[str]
    """The stage's section of `cluster` in the settings."""

    def __init__(
        self,
        work: Work,
        job: Job,
        report: Report,
        settings: GroupSettings,
        device: str,
        deadline_s: float,
        threads: int,
    ) -> None:
        self.job, self.settings, self.deadline_s = job, settings, deadline_s
        self.device = device
        self.report = report
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
            ),
            start_deadline_s=job.cluster.start_deadline_s,
            environment=rank_environment(device, threads),
        )
        # An exception here would reach the driver as text, after tries of Ray's own: it waits for
        # the first row.
        self.broken: Exception | None = None
        try:
            self.group.start()
            self.report.happened(cast(Event, f"{self.name} ready"))
        except (GroupCannotStart, RankGroupFailed) as error:
            self.broken = error

    def ask(self, request: Request) -> tuple[Answer, int]:
        """The group's answer to a request, and how often it was tried.

        A group that dies or hangs is rebuilt and asked again, `retries` times; then the answer is
        an error that quarantines the row. A rebuild that fails is a try like any other.

        Raises:
            GroupCannotStart, RankGroupFailed: the group could not be started at all, or not again,
                for several tries; the driver has the reason.
        """
        if self.broken:
            self._give_up(self.broken)
        tries = 0
        while True:
            tries += 1
            time.sleep(START_PAUSE_S * self.group.failed_starts)
            try:
                answers = self.group.request(request, self.deadline_s)
                return next((a for a in answers if a.error_code), answers[0]), tries
            except (RankGroupFailed, GroupCannotStart) as error:
                refused = self.group.failed_starts
                if refused >= START_TRIES:
                    self._give_up(error)
                if tries > self.job.cluster.retries:
                    late = isinstance(error, DeadlinePassed)
                    code = ErrorCode.DEADLINE if late else ErrorCode.RANK_DIED
                    text = f"the group could not start again: {error}" if refused else str(error)
                    return Answer(error_code=code, error=f"{text} (tried {tries} times)"), tries

    def _give_up(self, error: Exception) -> NoReturn:
        self.broken = error
        self.report.broken(str(error))
        raise error


def rank_environment(device: str, threads: int) -> dict[str, str]:
    """Environment variables of ranks.

    Waiting OpenMP threads spin by default: beside a second busy process that slows both 40-fold.
    """
    passive = {"OMP_WAIT_POLICY": "PASSIVE"}
    return passive | ({"OMP_NUM_THREADS": str(threads)} if device == "cpu" else {})
