"""Runs a job: wave after wave of Ray Data, until no row is left without its results.

The driver looks at the manifest's rows, stores the results of those that are refused, and gives the
others to the graph. What a wave loses with a process or a node, or gives back, the next one has.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pyarrow as pa

from cluster.connection import alive_nodes, configure, connected
from cluster.driver.control import Control, State
from cluster.driver.counts import with_events, with_refused, with_results
from cluster.driver.execution import TICK_S, Execution, Lease, WaveEnded
from cluster.driver.graph import graph
from cluster.driver.leaving import Leaving
from cluster.driver.lost import LOSSES, Futile, LostBlocks, all_lost, given_up, lost_blocks
from cluster.driver.nodes import Growth, end_silent, working
from cluster.driver.placing import Placing
from cluster.driver.rounds import Round, Rounds
from cluster.driver.scoring import Scoring
from cluster.driver.wave import Feed, Wave, most_rows
from cluster.events.driver import RunEvents, events_of
from cluster.job import Job, WorkLost
from cluster.layout.placement import Placement, gpu_kinds
from cluster.metrics.run import RunMetrics
from cluster.output.attempts import Attempts, forgive
from cluster.pending.rows import PendingRows
from cluster.pending.unscored import Unscored
from cluster.preflight.driver import preflight
from cluster.progress import Counts, Groups
from cluster.results.writer import ResultWriter
from cluster.stages import first_prompts
from cluster.stages.blocks import work_of
from cluster.stages.prompts import EncodePrompts
from cluster.waiting import Waiting
from pipeline.storage import Folder

THREAD_S = 10.0
"""What is left of a wave ends so soon after."""


def run(
    job: Job,
    pending: PendingRows,
    on_progress: Callable[[Counts], None],
    stop: threading.Event | None = None,
    lease: Lease | None = None,
    unscored: Unscored | None = None,
    rounds: Rounds | None = None,
) -> Counts:
    """Run a job to its end and store its results.

    Args:
        on_progress: called about five times a second, in this thread.
        stop: asks the run to end: no new work begins, and what runs has `stop_grace_s` to end.
        lease: of the output folder, where there is one.
        unscored: edits of earlier runs that lack a score.
        rounds: further ones of what is rejected.

    Returns:
        What was done.

    Raises:
        CannotRun: there is no Ray, the cluster is too small, the ranks of no group can work, or
            results could not be stored.
        Unreadable: rows of the manifest cannot be read.
    """
    feed = Feed(pending)
    threads, beside = list[threading.Thread](), list[threading.Thread]()

    def doing(text: str) -> None:
        on_progress(Counts(doing=text, starting=True))

    try:
        with ExitStack() as stack:
            events = stack.enter_context(events_of(job, pending.amount))
            placement = stack.enter_context(connected(job, pending.amount))
            before = alive_nodes()
            stack.enter_context(events.watching(alive_nodes))
            doing("checking whether every node can work")
            warnings = preflight(job)
            doing("checking rows of the manifest")
            configure(job)
            lost = stack.enter_context(lost_blocks())
            patience = job.cluster.storage_patience_s
            place = Folder(job.editing.output), job.run, patience
            writer = ResultWriter(*place, lease.check if lease else (lambda: None), events.note)
            placing = Placing(job, pending.amount, before)
            metrics = RunMetrics(job.run, pending.edits)
            one = _Run(
                job, pending.amount, feed, on_progress, writer, lost, threads, placing, metrics
            )
            one.stop, one.lease = stop, lease
            one.counts = Counts(notes=(*placement.notes, *warnings), gpus=gpu_kinds(before))
            one.events, one.rounds = events, rounds or Rounds(job, pending)
            one.scoring = Scoring(job, unscored, lost, events.note, beside.append)
            placing.beside = one.scoring.reserved
            return one.to_its_end(placement)
    finally:
        for thread in (*threads, *beside):
            thread.join(THREAD_S)


class _NoTime(Exception):
    """The run is stopped before a wave has begun."""


@dataclass
class _Run:
    """A run on its way.

    Args:
        threads: gets those that read the waves; they end with the connection at the latest.
    """

    job: Job
    amount: Any
    feed: Feed
    on_progress: Callable[[Counts], None]
    writer: ResultWriter
    lost: LostBlocks
    threads: list[threading.Thread]
    placing: Placing
    metrics: RunMetrics
    events: RunEvents = field(default_factory=RunEvents)
    scoring: Scoring = field(init=False)
    rounds: Rounds = field(init=False)
    stop: threading.Event | None = None
    lease: Lease | None = None
    counts: Counts = field(default_factory=Counts)
    losses: Counter[str | None] = field(default_factory=Counter)
    leaving: bool = False
    leave: Leaving | None = None
    cut: bool = False
    ended: set[tuple[str, int]] = field(default_factory=set)
    grace_ends: float | None = None
    trouble: str | None = None

    @property
    def held(self) -> str:
        """Why groups are broken that hold the rest of a wave; empty where none do."""
        return self.leave.held if self.leave else ""

    @property
    def stopping(self) -> bool:
        return self.stop is not None and self.stop.is_set()

    def to_its_end(self, placement: Placement) -> Counts:
        self.control, self.placement = Control(), placement
        self.events.planned(placement)
        # Where all GPUs are gone for a while, `auto` would go on with CPUs.
        device = cast(Any, placement.device)
        self.job = replace(self.job, cluster=replace(self.job.cluster, device=device))
        self.placing.job = self.job
        first = self.placing.still_holds(placement)
        futile = Futile(Attempts(Folder(self.job.editing.output), self.job.run))
        self.groups = working(placement)
        try:
            self._waves(futile, first)
            while further := self._next_round():
                self.placing.job = self.job = replace(self.job, round=further.number)
                self.placing.amount = self.amount = further.pending.amount
                self._note(further.note)
                self.feed = Feed(further.pending)
                self._waves(futile)
        except BaseException:
            self.control.say("leave")  # who was connected to Ray before keeps the wave's actors
            raise
        finally:
            with suppress(Exception):  # what is only shown keeps no result from being stored
                self._show("storing the last results")
            if self.stopping:
                self.writer.hurry(self.job.cluster.stop_grace_s)
            self.events.counts = self.counts
            self.events.stopping(self.stopping)  # where no tick has come since
            self.writer.close()
        self.counts = with_events(self.counts, placement, self.control.at_the_end().events)
        self.events.counts = self.counts
        self.metrics.tick(self.counts, 0, None, last=True)
        self._show("closing Ray")
        return self.counts

    def _waves(self, futile: Futile, first: Placement | None = None) -> None:
        """All waves of what the feed holds; the first one may have its place already."""
        while wave := self._next_wave():
            found, first = first or self._placed_again(), None
            if found is None:
                break
            self.placement = found
            before = len(wave.waiting)
            self.groups = working(found)
            self._through(wave, found)
            self.events.wave_ended(len(wave.waiting))
            if self.stopping:
                break
            left = self._keep(wave)
            fruitful = left < before or (self.leaving and not self.held)
            if futile.one_too_many(fruitful):
                raise WorkLost(all_lost(futile.waves, self.held, self.lost.why))

    def _next_round(self) -> Round | None:
        """The next round, once all have their scores; a stopped run leaves both to the next run."""
        while not (self.scoring.done or self.stopping):
            self._tick("scoring", last=True)
            time.sleep(TICK_S)
        self._take_scores(last=True)
        return None if self.stopping else self.rounds.next()

    def _take_scores(self, *, last: bool = False) -> None:
        # While storage takes nothing, what is scored would be lost, or not even be read.
        hold = self.stopping or self.writer.full or self.writer.note is not None
        for scored in self.scoring.tick(self.placement, last=last, hold=hold):
            self.rounds.saw(scored)
            self.writer.add(scored)
        self.counts = replace(self.counts, scores=self.scoring.counts)

    def _next_wave(self) -> Wave | None:
        """The rows of the next wave; None where nothing is left, or the run is to end."""
        most = most_rows(self.groups)
        while not self.feed.empty and not self.stopping:
            if wave := self.feed.wave(most):
                return wave
            self._look_ahead(most, TICK_S)
            self._tick("checking rows of the manifest")
        return None

    def _look_ahead(self, most: int, wait_s: float) -> None:
        """Take rows of the manifest, and store the results of those that are refused."""
        refused = self.feed.take(most, wait_s)
        if refused is not None and refused.num_rows:
            self._store(refused)
            self.counts = with_refused(self.counts, refused)
            self.events.refused(refused)

    def _show(self, doing: str = "") -> None:
        """`doing` is what this driver is at, where groups do not work."""
        self.on_progress(replace(self.counts, doing=doing) if doing else self.counts)

    def _tick(self, doing: str = "", *, last: bool = False) -> None:
        """Look after all but the wave.

        Args:
            doing: as of `_show`.
            last: no more edits come.
        """
        if self.lease is not None:
            self.lease.check()
        self.writer.check()
        self._take_scores(last=last)
        self.events.stopping(self.stopping)
        trouble = self.writer.note
        if trouble and not self.trouble:
            self._note(trouble)
        self.trouble = trouble
        self.metrics.tick(self.counts, self.writer.unstored, trouble)
        self._show(doing)

    def _placed_again(self) -> Placement | None:
        """Room among the nodes of now; None where the run is to end while it waits for some."""
        notes = self.counts.notes

        def on_wait(why: str) -> bool:
            self.counts = replace(self.counts, notes=(*notes, why) if why else notes)
            self._tick("waiting for nodes with room" if why else "finding room for the groups")
            return not self.stopping

        if self.threads:
            self.threads[-1].join(THREAD_S)  # it holds what the wave before reserved
        return self.placing.again(self.control.so_far().owners.values(), on_wait)

    def _through(self, wave: Wave, placement: Placement) -> None:
        """Have the rows of a wave worked on, until it ends."""
        amount = wave.amount if self.feed.empty else self.amount
        self.leaving, self.cut, self.leave = False, False, None
        self.control.begin()
        self.events.wave_began(wave.amount, placement)
        self.metrics.begin(wave.waiting)
        try:
            ready = self._first_prompts(wave, placement)
        except _NoTime:
            return
        growth = Growth(self.job, placement, alive_nodes(), left_out=self.placing.left_out)
        self.leave = Leaving(wave, placement, growth, self.placing, self.amount)
        self.waiting, self.lost_before = Waiting(), self.lost.count
        self.counts = with_events(self.counts, placement, self.control.so_far().events)
        self.on_progress(self.counts)
        made = Execution(graph(self.job, wave.work, placement, self.control.report, ready, amount))
        self.threads.append(made.thread)
        try:
            for table in made.ticks():
                if table is not None:
                    self._take(wave, table)
                    continue
                self._look_ahead(most_rows(self.groups), 0.0)
                if not self._go_on(wave, placement):
                    break  # what is left of it ends with the connection
            for table in made.ready():
                self._take(wave, table)
        except WaveEnded as ended:
            forgive(Folder(self.job.editing.output), self.job.run)  # Ray has ended the groups
            self.lost.add(ended.error)
            self.cut = True

    def _first_prompts(self, wave: Wave, placement: Placement) -> first_prompts.Prepared:
        groups = (Groups(EncodePrompts.name, 1, 1),)
        encoding = replace(self.counts, groups=groups, doing="encoding the first prompts on a GPU")

        def on_wait() -> None:
            self._end_silent()
            self.metrics.tick(encoding, self.writer.unstored, self.writer.note)
            self.on_progress(encoding)
            if self.stopping:
                raise _NoTime

        first = first_prompts.First(work_of(wave.work), all=self.feed.empty)
        ready = first_prompts.prepare(self.job, placement, first, on_wait, self.control.report)
        self._note(*ready.notes)
        return ready

    def _end_silent(self) -> State:
        """What the stages report, once owners that are stopped are ended."""
        state = self.control.so_far()
        ended = end_silent(state.owners.values(), state.now, self.ended)
        self.events.ended(state.owners, ended)
        self.ended.update(ended)
        return state

    def _take(self, wave: Wave, table: pa.Table) -> None:
        """Results of a wave."""
        new = wave.new_results(table)
        if new.num_rows:
            self._store(new)

    def _store(self, results: pa.Table) -> None:
        results = self.scoring.before_storing(self.rounds.joined(results))
        self.writer.add(results)
        self.counts = with_results(self.counts, results)
        self.metrics.results(results)
        self.scoring.made(results)  # only now: its rows come back newer than these

    def _go_on(self, wave: Wave, placement: Placement) -> bool:
        """Look after a wave; False where it is not waited for any longer."""
        now = time.monotonic()
        state = self._end_silent()
        counts = with_events(self.counts, placement, state.events, state.doing())
        self.counts = replace(counts, notes=counts.notes + self.waiting.note(now))
        self._tick()
        assert self.leave
        self.leaving = self.leaving or self.leave.is_time(state, now) or self.stopping
        # While storage takes nothing, what groups make would be lost with their tries.
        wait = self.writer.full or self.writer.note
        self.control.say("leave" if self.leaving else "wait" if wait else "go")
        if not self.stopping:
            return True
        self.grace_ends = self.grace_ends or now + self.job.cluster.stop_grace_s
        return now < self.grace_ends

    def _keep(self, wave: Wave) -> int:
        """Have what a wave left in the next one, but for rows that were lost too often.

        Returns:
            How many edits have no result.
        """
        left = wave.left()
        ids = left["video_id"].to_pylist()
        # Of a wave that was cut short most rows were at no group.
        if not self.leaving and not self.cut and self.lost.count > self.lost_before:
            self.losses.update(ids)
        most = max(LOSSES, self.job.cluster.retries + 3)
        often = [self.losses[video_id] >= most for video_id in ids]
        if any(often):
            lost = given_up(left.filter(pa.array(often)), self.job.run, self.lost, most)
            self._take(wave, lost)
            self.events.refused(lost)
            left = wave.left()
        if left.num_rows:
            many = f"{left.num_rows} video{'s' * (left.num_rows != 1)}"
            why = f" ({self.lost.why})" if self.lost.count > self.lost_before else ""
            are = "are" if left.num_rows != 1 else "is"
            note = f"{many} {are} without all results{why}; what is missing is made next"
            self._note(note)
            self.events.rows_left(note)
            self.feed.put(left)
        return len(wave.waiting)

    def _note(self, *texts: str) -> None:
        self.counts = replace(self.counts, notes=(*self.counts.notes, *texts))
