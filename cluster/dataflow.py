"""Runs a job: wave after wave of Ray Data, until no row is left without its results.

The driver looks at the manifest's rows, stores the results of those that are refused, and gives the
others to the graph. What a wave loses with a process or a node, or gives back, the next one has.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import pyarrow as pa

from cluster import quiet  # noqa: F401 - before Ray, which reads it when it is imported

import ray  # isort: skip
import ray.data  # isort: skip

from cluster.connection import alive_nodes, configure, connected, placed, reason
from cluster.driver.control import Control, Owner, State
from cluster.driver.counts import with_events, with_results
from cluster.driver.graph import ROWS_OF_A_GROUP, graph
from cluster.driver.lost import LOSSES, LostBlocks, given_up, lost_blocks
from cluster.driver.nodes import Growth, end_silent, working
from cluster.driver.wave import Feed, Wave, most_rows
from cluster.job import CannotRun, Job
from cluster.layout.placement import Placement, given_address
from cluster.output.attempts import forgive
from cluster.pending.rows import PendingRows
from cluster.preflight.driver import preflight
from cluster.progress import Counts, Groups
from cluster.results.writer import ResultWriter
from cluster.stages import first_prompts
from cluster.stages.blocks import work_of
from cluster.stages.prompts import EncodePrompts
from cluster.waiting import Waiting
from pipeline.storage import Folder

TICK_S = 0.2
FUTILE_WAVES = 3
"""So many waves in a row without a result end the job."""
BACK_S = 600.0
"""A cluster's nodes that left are waited for so long, where the others have no room for the job."""
FREED_AGAIN_S = 60.0
"""What the wave before reserved is free again by then: its actors end one after the other."""
THREAD_S = 10.0
"""What is left of a wave ends so soon after."""

Finished = queue.SimpleQueue[pa.Table | BaseException | None]
"""Blocks as they are finished; then None, or what stopped the graph."""


class WaveEnded(Exception):
    """Ray ended a wave before its rows."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


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
    try:
        with ExitStack() as stack:
            placement = stack.enter_context(connected(job, pending.amount))
            warnings = preflight(job)
            configure(job)
            lost = stack.enter_context(lost_blocks())
            patience = job.cluster.storage_patience_s
            check = lease.check if lease else (lambda: None)
            writer = ResultWriter(Folder(job.editing.output), job.run, patience, check)
            notes = (*placement.notes, *warnings)
            one = _Run(job, pending.amount, feed, on_progress, writer, lost, threads)
            one.stop, one.lease, one.counts = stop, lease, Counts(notes=notes)
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
    stop: threading.Event | None = None
    lease: Lease | None = None
    counts: Counts = field(default_factory=Counts)
    losses: Counter[str | None] = field(default_factory=Counter)
    without: frozenset[str] = frozenset()
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
        self.placement: Placement | None = placement
        # Where all GPUs are gone for a while, `auto` would go on with CPUs.
        self.job = replace(
            self.job, cluster=replace(self.job.cluster, device=cast(Any, placement.device))
        )
        futile = 0
        try:
            while wave := self._next_wave():
                found, self.placement = self.placement or self._placed_again(), None
                if found is None:
                    break
                placement, before = found, len(wave.waiting)
                self._through(wave, placement)
                if self.stopping:
                    break
                left = self._keep(wave)
                fruitful = left < before or (self.leaving and not self.held)
                futile = 0 if fruitful else futile + 1
                if futile >= FUTILE_WAVES:
                    raise CannotRun(self._futile(futile))
        finally:
            if self.stopping:
                self.writer.hurry(self.job.cluster.stop_grace_s)
            self.writer.close()
        self.counts = with_events(self.counts, placement, self.control.at_the_end().events)
        self.on_progress(self.counts)
        return self.counts

    def _next_wave(self) -> Wave | None:
        """The rows of the next wave; None where nothing is left, or the run is to end."""
        most = most_rows(working(self.placement) if self.placement else 1)
        while not self.feed.empty and not self.stopping:
            if wave := self.feed.wave(most):
                return wave
            self._look_ahead(most, TICK_S)
            self._tick()
        return None

    def _look_ahead(self, most: int, wait_s: float) -> None:
        """Take rows of the manifest, and store the results of those that are refused."""
        refused = self.feed.take(most, wait_s)
        if refused is not None and refused.num_rows:
            self.writer.add(refused)
            self.counts = with_results(self.counts, refused)

    def _tick(self) -> None:
        if self.lease is not None:
            self.lease.check()
        self.writer.check()
        trouble = self.writer.note
        if trouble and not self.trouble:
            self._note(trouble)
        self.trouble = trouble
        self.on_progress(self.counts)

    def _placed_again(self) -> Placement | None:
        """Room among the nodes of now; None where the run is to end while it waits for some."""
        until = time.monotonic() + (BACK_S if given_address() else 0.0)
        notes = self.counts.notes
        while not self.stopping:
            try:
                return self._room()
            except CannotRun as error:
                if time.monotonic() >= until:
                    raise
                text = f"{error}. Nodes are waited for, {BACK_S:g} s at most"
                self.counts = replace(self.counts, notes=(*notes, text))
            self._tick()
            time.sleep(TICK_S)
        return None

    def _room(self) -> Placement:
        """Nodes with broken groups get none, if that leaves room."""
        try:
            return placed(self.job, self.amount, self.without, FREED_AGAIN_S)
        except CannotRun:
            if not self.without:
                raise
        self.without = frozenset()
        return placed(self.job, self.amount, freed_s=FREED_AGAIN_S)

    def _through(self, wave: Wave, placement: Placement) -> None:
        """Have the rows of a wave worked on, until it ends."""
        amount = wave.amount if self.feed.empty else self.amount
        self.leaving, self.cut, self.held = False, False, ""
        try:
            ready = self._first_prompts(wave, placement)
        except _NoTime:
            return
        self.control.begin()
        self.growth = Growth(self.job, placement, alive_nodes())
        self.waiting = Waiting()
        self.lost_before = self.lost.count
        self.counts = with_events(self.counts, placement, self.control.so_far().events)
        self.on_progress(self.counts)
        finished: Finished = queue.SimpleQueue()
        dataset = graph(self.job, wave.work, placement, self.control.report, ready, amount)
        thread = threading.Thread(target=_consume, args=(dataset, finished), daemon=True)
        self.threads.append(thread)
        thread.start()
        try:
            for table in _ticks(finished):
                if table is not None:
                    self._take(wave, table)
                    continue
                self._look_ahead(most_rows(working(placement)), 0.0)
                if not self._go_on(wave, placement):
                    return  # what is left of it ends with the connection
        except WaveEnded as ended:
            forgive(Folder(self.job.editing.output), self.job.run)  # Ray has ended the groups
            self.lost.count += 1
            self.lost.error = ended.error
            self.cut = True

    def _first_prompts(self, wave: Wave, placement: Placement) -> first_prompts.Prepared:
        encoding = replace(self.counts, groups=(Groups(EncodePrompts.name, 1, 1),))

        def on_wait() -> None:
            self.on_progress(encoding)
            if self.stopping:
                raise _NoTime

        first = first_prompts.First(work_of(wave.work), all=self.feed.empty)
        ready = first_prompts.prepare(self.job, placement, first, on_wait)
        self._note(*ready.notes)
        return ready

    def _take(self, wave: Wave, table: pa.Table) -> None:
        """Results of a wave."""
        new = wave.new_results(table)
        if new.num_rows:
            self.writer.add(new)
            self.counts = with_results(self.counts, new)

    def _go_on(self, wave: Wave, placement: Placement) -> bool:
        """Look after a wave; False where it is not waited for any longer."""
        now = time.monotonic()
        state = self.control.so_far()
        counts = with_events(self.counts, placement, state.events)
        self.counts = replace(counts, notes=counts.notes + self.waiting.note(now))
        self._tick()
        self.ended.update(end_silent(state.owners.values(), state.now, self.ended))
        self.leaving = self.leaving or self._is_to_leave(wave, state, placement, now)
        self.control.say("leave" if self.leaving else "wait" if self.writer.full else "go")
        if not self.stopping:
            return True
        self.grace_ends = self.grace_ends or now + self.job.cluster.stop_grace_s
        return now < self.grace_ends

    def _is_to_leave(self, wave: Wave, state: State, placement: Placement, now: float) -> bool:
        """Whether no more rows are to start in this wave.

        Raises:
            CannotRun: no group can start.
        """
        groups = {pool.stage: pool.groups for pool in placement.pools}
        # One of the wave before, which had another layout, may have reported late.
        broken = [one for one in state.owners.values() if one.broken and one.stage in groups]
        for stage in {owner.stage for owner in broken}:
            of_stage = [owner for owner in broken if owner.stage == stage]
            if len(of_stage) >= groups[stage]:
                raise CannotRun(f"a rank group could not start: {of_stage[0].broken}")
        if self._is_held(wave, state, placement, broken):
            self.without |= {owner.node for owner in broken}
            self.held = broken[0].broken
        return self.stopping or bool(self.held) or self.growth.more(now, self.amount) > 0

    def _is_held(
        self, wave: Wave, state: State, placement: Placement, broken: Sequence[Owner]
    ) -> bool:
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
            self._take(wave, given_up(left.filter(pa.array(often)), self.job.run, self.lost, most))
            left = wave.left()
        if left.num_rows:
            many = f"{left.num_rows} video{'s' * (left.num_rows != 1)}"
            lost = self.lost.error if self.lost.count > self.lost_before else None
            why = f" ({reason(lost)})" if lost else ""
            self._note(f"{many} without all results{why}: made with new groups")
            self.feed.put(left)
        return len(wave.waiting)

    def _note(self, *texts: str) -> None:
        self.counts = replace(self.counts, notes=(*self.counts.notes, *texts))

    def _futile(self, waves: int) -> str:
        if self.held:
            return f"a rank group could not start: {self.held}"
        error = self.lost.error
        return (
            f"Ray lost all of the job's work {waves} times in a row: "
            f"{reason(error) if error else 'no reason is known'}. The results so far are stored; "
            "look for what ended it (memory, a node that left, packages that a node lacks), and "
            "run the same command again to go on"
        )


def _consume(dataset: ray.data.Dataset, finished: Finished) -> None:
    try:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            finished.put(table)
        finished.put(None)
    except BaseException as error:
        finished.put(error)


def _ticks(finished: Finished) -> Iterator[pa.Table | None]:
    """Finished blocks as they come, and None every `TICK_S` at least."""
    shown = time.monotonic()
    while True:
        left = max(0.0, shown + TICK_S - time.monotonic())
        try:
            table = finished.get(timeout=left)
        except queue.Empty:
            shown = time.monotonic()
            yield None
            continue
        if table is None:
            return
        if isinstance(table, Exception):
            raise WaveEnded(table)
        if isinstance(table, BaseException):
            raise table
        yield table
        if time.monotonic() - shown >= TICK_S:
            shown = time.monotonic()
            yield None
