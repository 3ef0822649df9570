"""Runs a job to its end while faults are brought about, and says what did not hold.

A fault comes when a drawn number of edits is stored, so that all come before the job is done on a
fast machine and on a slow one, and some drawn seconds later, so that any of them can hit what
another one left.
"""

from __future__ import annotations

import math
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.checks import (
    Committed,
    Edit,
    committed,
    damaged,
    left_behind,
    made_again,
    result_rows,
    unfinished,
)
from tests.faults.injected import KINDS, Active, Scene, possible
from tests.faults.record import Log
from tests.faults.scene.dataset import Dataset
from tests.faults.scene.places import Place
from tests.faults.scene.runs import start_run

TICK_S = 0.3
HANG_S = 240.0
"""A run in which nothing is wrong from outside, and that stores no edit for so long, hangs."""
BACK_S = 120.0
"""A group that was killed and is not there again by then does not come back, though the job may go
on without it."""
NO_TARGET_S = 30.0
"""A fault whose target is not there in this time is left out."""
PAUSE_S = 3.0
"""Before the run after one that ended by itself, as who starts it again would leave."""
TRIES = 4
"""So many runs without a fault may be needed at the end: an edit that failed is made again."""
BEGUN = "comparing the manifest with the results"
"""What a run says once it found that it can run."""
OF_A_RANK = ("out_of_memory", "gpu_out_of_memory", "rank_died", "deadline")
"""Errors of an edit that a rank's own troubles may cause; the next run makes it."""
BY_SIGNAL = (-signal.SIGKILL, 128 + signal.SIGINT, 128 + signal.SIGTERM)


@dataclass(frozen=True)
class Moment:
    """When a fault comes.

    Args:
        edits: so many edits are stored, and
        then_s: so many seconds went by since.
        lasts_s: until it is lifted.
        file: a file whose name begins so is there too.
    """

    kind: str
    edits: int
    then_s: float
    lasts_s: float
    file: str = ""


def drawn_moments(scene: Scene, faults: int, edits: int) -> list[Moment]:
    """Faults of all kinds that the scene allows, at drawn moments of a job.

    Args:
        edits: that the job makes.
    """
    draw, kinds = scene.draw, possible(scene)
    chosen = draw.choices(kinds, [KINDS[kind].weight for kind in kinds], k=faults)
    after = sorted(draw.randrange(int(edits * 0.9)) for _ in chosen)
    return [
        Moment(kind, stored, draw.choice((0.0, draw.uniform(0, 3), draw.uniform(0, 12))), lasts)
        for kind, stored in zip(chosen, after, strict=True)
        for lasts in [draw.uniform(*KINDS[kind].lasts_s)]
    ]


def moments_of(
    draw: random.Random, kinds: Sequence[str], edits: int, most_s: float = math.inf
) -> list[Moment]:
    """These kinds in this order, spread over a job of so many edits.

    Args:
        most_s: none lasts longer.
    """
    between = edits * 0.8 / max(1, len(kinds))
    return [
        Moment(kind, int(number * between), draw.uniform(0, 2), min(most_s, draw.uniform(*lasts)))
        for number, kind in enumerate(kinds)
        for lasts in [KINDS[kind].lasts_s]
    ]


@dataclass
class _Fault:
    """A fault on its way.

    Args:
        lift_at: when it is to be lifted, and
        lifted_at: when it was.
        edits: stored when it was lifted.
        ended: whether the run that it was to end did.
        went_on: False after a run ended that was not to end.
    """

    moment: Moment
    active: Active
    lift_at: float
    lifted_at: float | None = None
    edits: int = 0
    ended: bool = False
    went_on: bool = True


@dataclass
class Campaign:
    """A job under faults.

    Args:
        environment: of the driver.
        folder: of that environment.
        own_cluster: whether the run starts Ray itself.

    Attributes:
        problems: what did not hold.
    """

    scene: Scene
    dataset: Dataset
    place: Place
    environment: dict[str, str]
    folder: Path
    log: Log
    shared_memory: set[str]
    own_cluster: bool = False
    problems: list[str] = field(default_factory=list)
    _waiting: list[Moment] = field(default_factory=list)
    _faults: list[_Fault] = field(default_factory=list)
    _before: Mapping[Edit, Committed] = field(default_factory=dict)
    _names: Mapping[str, str] = field(default_factory=dict)
    _stored: int = 0
    _since: float = 0.0
    _due_since: float | None = None
    _tries: int = 0
    _runs: int = 0

    def go(self, moments: Sequence[Moment]) -> list[str]:
        """Run until the job is done; returns `problems`."""
        self._waiting = list(moments)
        self._start()
        try:
            while not self._finished():
                self._look()
                self._lift()
                self._bring()
                self._see_hang()
                time.sleep(TICK_S)
        finally:
            self._end()
        self._check_end()
        return self.problems

    def _start(self) -> None:
        self._runs += 1
        # Beside the log of events, where it is kept.
        log = self.log.path.with_name(f"{self.folder.name}-run-{self._runs}.log")
        self.scene.run = start_run(self.dataset, log, self.environment)
        self._since = time.monotonic()
        self.log.add("run", number=self._runs, log=log.name)

    def _finished(self) -> bool:
        """Whether the job is done; a run that ended before that is followed by another one."""
        run = self.scene.run
        assert run
        if not run.ended:
            return False
        status = run.status
        now = committed(self.place)
        self._problem(*made_again(self._before, now))
        self._before = now
        left = unfinished(self.place, self.dataset)
        asked = [f for f in self._faults if KINDS[f.moment.kind].ends_run and not f.ended]
        expected = status in ((*BY_SIGNAL, 0, 3) if asked else (0, 3)) or self._refused()
        self.log.add("ended", status=status, done=len(now), expected=expected)
        self._count()
        for fault in asked:
            fault.ended, fault.edits = True, self._stored
        if not expected:
            for fault in self._faults:
                fault.went_on = False
            self._problem(f"a run ended with {status}:\n{run.last_lines(40)}")
        if status == 3:
            self._note_failed()
        if status == 0 and not left:
            self._look()
            return True
        if not self._waiting and not self._faults:
            self._tries += 1
        if self._tries > TRIES:
            return True
        if not asked:
            time.sleep(PAUSE_S)
        self._start()
        return False

    def _refused(self) -> bool:
        """Whether a run did not begin since its storage was not there, and says so."""
        of_storage = ("storage", "disk")
        cause = any(KINDS[fault.moment.kind].needs in of_storage for fault in self._faults)
        assert self.scene.run
        text = self.scene.run.log.read_text(errors="replace")
        return cause and BEGUN not in text and "\nerror: output " in text

    def _note_failed(self) -> None:
        """Edits that failed: all of them can be made, and storage's troubles were short."""
        failed = [row for row in result_rows(self.place) if row["status"] != "ok"]
        for code, count in Counter(row["error_code"] for row in failed).items():
            text = next(row["error"] for row in failed if row["error_code"] == code)
            self.log.add("failed", code=code, count=count, error=text)
            if code not in OF_A_RANK:
                self._problem(f"{count} edits failed with {code}: {text}")

    def _count(self) -> int:
        """How many edits are stored."""
        names = self._names = self.place.versions()
        stored = sum(1 for name in names if name.startswith("edits/") and name.endswith(".mp4"))
        if stored != self._stored:
            self._stored, self._since = stored, time.monotonic()
        return stored

    def _look(self) -> None:
        """See which faults are recovered from."""
        stored, now = self._count(), time.monotonic()
        done = self.scene.run is not None and self.scene.run.status == 0
        for fault in list(self._faults):
            if fault.lifted_at is None:
                continue
            ends = KINDS[fault.moment.kind].ends_run
            goes_on = stored > fault.edits and (fault.ended or not ends)
            late = now - fault.lifted_at > BACK_S
            if done or (goes_on and (late or fault.active.back())):
                self._faults.remove(fault)
                after_s = round(now - fault.lifted_at, 1)
                about = {"kind": fault.moment.kind, "after_s": after_s, "went_on": fault.went_on}
                self.log.add("recovered", **about, back=done or not late)

    def _lift(self) -> None:
        now = time.monotonic()
        for fault in self._faults:
            if fault.lifted_at is None and now >= fault.lift_at:
                fault.active.lift()
                fault.lifted_at, fault.edits = now, self._stored
                self._since = now

    def _bring(self) -> None:
        """The next fault, where it is due."""
        now = time.monotonic()
        if not self._waiting or self._stored < self._waiting[0].edits:
            return
        moment = self._waiting[0]
        if not any(name.startswith(moment.file) for name in self._names or ("",)):
            return
        self._due_since = self._due_since or now
        if now < self._due_since + moment.then_s:
            return
        active = KINDS[moment.kind].bring(self.scene)
        if active:
            self._faults.append(_Fault(moment, active, now + moment.lasts_s))
            self.log.add(
                "fault", kind=moment.kind, of=active.of, stored=self._stored, lasts_s=moment.lasts_s
            )
        elif now < self._due_since + moment.then_s + NO_TARGET_S:
            return
        else:
            self.log.add("no target", kind=moment.kind)
        self._waiting.pop(0)
        self._due_since = None

    def _see_hang(self) -> None:
        if any(fault.lifted_at is None for fault in self._faults):
            self._since = time.monotonic()
        if time.monotonic() - self._since < HANG_S:
            return
        assert self.scene.run
        of = ", ".join(fault.moment.kind for fault in self._faults)
        there = "\n".join(map(str, self.scene.family.look()))
        self._problem(f"a run hangs after: {of}\n{self.scene.run.last_lines(40)}\n{there}")
        for fault in self._faults:
            self.log.add("not recovered", kind=fault.moment.kind)
        self._faults.clear()
        self.scene.run.process.kill()
        self.scene.run.process.wait()

    def _end(self) -> None:
        """Leave nothing stopped, whatever ended the campaign."""
        for fault in self._faults:
            if fault.lifted_at is None:
                fault.active.lift()
        if self.scene.run and not self.scene.run.ended:
            self.scene.run.process.kill()
            self.scene.run.process.wait()
        self._faults.clear()
        for moment in self._waiting:
            self.log.add("not reached", kind=moment.kind)

    def _check_end(self) -> None:
        self._problem(*unfinished(self.place, self.dataset))
        self._problem(*damaged(self.place))
        self._problem(
            *left_behind(
                self.scene.family, self.folder, self.shared_memory, own_cluster=self.own_cluster
            )
        )
        self.log.add("checked", problems=len(self.problems), runs=self._runs)

    def _problem(self, *texts: str) -> None:
        for text in texts:
            self.problems.append(text)
            self.log.add("problem", text=text)
