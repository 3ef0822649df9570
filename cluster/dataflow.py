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
from typing import Any, Protocol, cast

import pyarrow as pa

from cluster.connection import alive_nodes, configure, connected
from cluster.driver.control import Control, Owner, State
from cluster.driver.counts import with_events, with_refused, with_results
from cluster.driver.execution import TICK_S, Execution, WaveEnded
from cluster.driver.graph import ROWS_OF_A_GROUP, graph
from cluster.driver.lost import LOSSES, Futile, LostBlocks, given_up, lost_blocks
from cluster.driver.nodes import SILENT_S, Growth, end_silent, working
from cluster.driver.placing import BACK_S, Placing
from cluster.driver.wave import Feed, Wave, most_rows
from cluster.events.driver import RunEvents, events_of
from cluster.job import CannotRun, Job, WorkLost
from cluster.layout.placement import Placement, gpu_kinds
from cluster.metrics.run import RunMetrics
from cluster.output.attempts import Attempts, forgive
from cluster.pending.rows import PendingRows
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
NO_GROUP = (
    f"the nodes of the job's groups have left, and none has come with room for one in {BACK_S:g} s"
    ". The results so far are stored; add nodes, and run the same command again to go on"
)


class Lease(Protocol):
    """This run's hold on its output folder."""

    def check(self) -> None:
        """Raises where another run has taken it over."""


def run(
    job: Job,
    pending: PendingRows,
    on_progress: Callable[[Counts], None],
    stop: threading.Event | None = None,
    lease: Lease | None = None,
) -> Counts:
    """Run a job to its end and store its results.

    Args:
        on_progress: called about five times a second, in this thread.
        stop: asks the run to end: no new work begins, and what runs has `stop_grace_s` to end.
        lease: of the output folder, where there is one.

    Returns:
        What was done.

    Raises:
        CannotRun: there is no Ray, the cluster is too small, the ranks of no group can work, or
            results could not be stored.
        Unreadable: rows of the manifest cannot be read.
    """
    feed = Feed(pending)
    threads: list[threading.Thread] = []

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
            check = lease.check if lease else (lambda: None)
            output = Folder(job.editing.output)
            writer = ResultWriter(output, job.run, patience, check, events.note)
            notes, kinds = (*placement.notes, *warnings), gpu_kinds(before)
            placing = Placing(job, pending.amount, before)
            metrics = RunMetrics(job.run, pending.edits)
            one = _Run(
                job, pending.amount, feed, on_progress, writer, lost, threads, placing, metrics
            )
            one.stop, one.lease, one.counts = stop, lease, Counts(notes=notes, gpus=kinds)
            one.events = events
            return one.to_its_end(placement)
    finally:
        for thread in threads:
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
    stop: threading.Event | None = None
    lease: Lease | None = None
    counts: Counts = field(default_factory=Counts)
    losses: Counter[str | None] = field(default_factory=Counter)
    leaving: bool = False
    held: str = ""
    cut: bool = False
    ended: set[tuple[str, int]] = field(default_factory=set)
    grace_ends: float | None = None
    trouble: str | None = None

    @property
    def stopping(self) -> bool:
        return self.stop is not None and self.stop.is_set()

    def to_its_end(self, placement: Placement) -> Counts:
        self.control = Control()
        self.events.planned(placement)
        # Where all GPUs are gone for a while, `auto` would go on with CPUs.
        device = cast(Any, placement.device)
        self.job = replace(self.job, cluster=replace(self.job.cluster, device=device))
        self.placing.job = self.job
        first = self.placing.still_holds(placement)
        futile = Futile(Attempts(Folder(self.job.editing.output), self.job.run))
        self.groups = working(placement)
        try:
            while wave := self._next_wave():
                found, first = first or self._placed_again(), None
                if found is None:
                    break
                placement, before = found, len(wave.waiting)
                self.groups = working(placement)
                self._through(wave, placement)
                self.events.wave_ended(len(wave.waiting))
                if self.stopping:
                    break
                left = self._keep(wave)
                fruitful = left < before or (self.leaving and not self.held)
                if futile.one_too_many(fruitful):
                    raise WorkLost(self._futile(futile.waves))
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

    def _tick(self, doing: str = "") -> None:
        if self.lease is not None:
            self.lease.check()
        self.writer.check()
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
        self.leaving, self.cut, self.held = False, False, ""
        self.control.begin()
        self.events.wave_began(wave.amount, placement)
        self.metrics.begin(wave.waiting)
        try:
            ready = self._first_prompts(wave, placement)
        except _NoTime:
            return
        self.growth = Growth(self.job, placement, alive_nodes(), left_out=self.placing.left_out)
        self.waiting = Waiting()
        self.lost_before, self.all_waiting = self.lost.count, len(wave.waiting)
        self.heard = time.monotonic()
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
        self.writer.add(results)
        self.counts = with_results(self.counts, results)
        self.metrics.results(results)

    def _go_on(self, wave: Wave, placement: Placement) -> bool:
        """Look after a wave; False where it is not waited for any longer."""
        now = time.monotonic()
        state = self._end_silent()
        counts = with_events(self.counts, placement, state.events, state.doing())
        self.counts = replace(counts, notes=counts.notes + self.waiting.note(now))
        self._tick()
        self.leaving = self.leaving or self._is_to_leave(wave, state, placement, now)
        # While storage takes nothing, what groups make would be lost with their tries.
        wait = self.writer.full or self.writer.note
        self.control.say("leave" if self.leaving else "wait" if wait else "go")
        if not self.stopping:
            return True
        self.grace_ends = self.grace_ends or now + self.job.cluster.stop_grace_s
        return now < self.grace_ends

    def _is_to_leave(self, wave: Wave, state: State, placement: Placement, now: float) -> bool:
        """Whether no more rows are to start in this wave.

        Raises:
            CannotRun: no group can start, or none has a place any more.
        """
        groups = {pool.stage: pool.groups for pool in placement.pools}
        owners = [one for one in state.owners.values() if one.stage in groups]
        on_videos = {pool.stage for pool in placement.pools[1:]}
        if any(one.stage in on_videos and state.now - one.seen < SILENT_S for one in owners):
            self.heard = now
        if now - self.heard >= BACK_S:
            raise CannotRun(NO_GROUP)
        broken = [one for one in owners if one.broken]
        for stage in {owner.stage for owner in broken}:
            of_stage = [owner for owner in broken if owner.stage == stage]
            if len(of_stage) >= groups[stage]:
                raise CannotRun(f"a rank group could not start: {of_stage[0].broken}")
        if self._is_held(wave, state, placement, broken):
            self.placing.left_out.add({owner.node for owner in broken})
            self.held = broken[0].broken
        # Before the first result all that a wave costs would be lost, for each node that comes.
        grown = len(wave.waiting) < self.all_waiting and self.growth.more(now, self.amount) > 0
        return self.stopping or bool(self.held) or grown

    def _is_held(self, wave: Wave, state: State, placement: Placement, broken: list[Owner]) -> bool:
        """Whether what is left is with broken groups, and the others, all loaded, have no more."""
        if not broken or wave.videos > ROWS_OF_A_GROUP * working(placement):
            return False
        ready = sum(state.events.get(f"{pool.stage} ready", 0) for pool in placement.pools[1:])
        return ready + len(broken) >= working(placement)

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

    def _futile(self, waves: int) -> str:
        if self.held:
            return f"a rank group could not start: {self.held}"
        return (
            f"Ray lost all of the job's work {waves} times in a row: "
            f"{self.lost.why or 'no reason is known'}. The results so far are stored; "
            "look for what ended it (memory, a node that left, packages that a node lacks), and "
            "run the same command again to go on"
        )
