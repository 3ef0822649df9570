"""The scoring of a run, beside its groups: which rows wait for scores, and the waves of them.

A wave is an execution of Ray Data of its own. Nobody waits for it but the end of the run. The rows
that come back go to the writer of results again, whole: the newest row of an edit counts, so a run
that is killed at any moment leaves each edit with the scores that it has by then.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from cluster.accept import measured_kinds, rules_of
from cluster.connection import reason
from cluster.driver.execution import ENDED, Execution
from cluster.driver.graph import longest_block_s, scoring_graph
from cluster.driver.lost import LostBlocks
from cluster.events.record import Happened, Note, ignore
from cluster.job import Job
from cluster.layout.placement import Placement
from cluster.layout.scorers import Scorers
from cluster.pending.unscored import Unscored
from cluster.progress import Scored
from cluster.results.held import Held
from cluster.stages.score import GIVEN_BACK, NOT_LOADED, SECONDS, decided

ROWS = 2_000
"""Of a wave at most: the driver holds them once."""
ENOUGH = 256
"""With so many rows a wave begins: each one loads the models anew."""
GATHER_S = 120.0
"""It begins with fewer, too, so long after the first of them came."""
TRIES = 3
"""So often a row is tried in a run; the next run tries it again."""
FUTILE_WAVES = 3
"""So many in a row without a score end the scoring of a run."""
PAUSE_S = 10.0
"""After a wave without a score; after two, twice as long."""
BLOCKS_OF_A_BROKEN = 3
"""Where each actor has given back so many blocks unloaded, and none was scored, none can load."""

Key = tuple[str | None, str | None]


@dataclass
class _Wave:
    """Rows on their way.

    Args:
        rows: None until the thread of the execution has read them.
        back: the edits that came back with their scores.
        seen: when a block came last.
        unloaded: blocks that an actor without models gave back.
    """

    rows: pa.Table | None = None
    back: set[Key] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)
    seen: float = field(default_factory=time.monotonic)
    unloaded: int = 0
    execution: Any = None

    def left(self) -> pa.Table | None:
        if self.rows is None:
            return None
        return self.rows.filter(pa.array([key not in self.back for key in keys_of(self.rows)]))


class Scoring:
    """Scores what a run stores, and what earlier runs have stored. Used by the driver's thread.

    Args:
        earlier: rows of earlier runs that lack a score.
        lost: says why Ray Data lost blocks.
        note: gets what happens.
        on_thread: gets the thread of each wave, which ends with the connection to Ray.
    """

    def __init__(
        self,
        job: Job,
        earlier: Unscored | None = None,
        lost: LostBlocks | None = None,
        note: Note = ignore,
        on_thread: Callable[[Any], None] = lambda thread: None,
    ) -> None:
        self._job, self._lost, self._note, self._on_thread = job, lost, note, on_thread
        self._kinds, self._rules = measured_kinds(job.score), rules_of(job)
        self._earlier = earlier if self._kinds else None
        self._waiting = Held()
        self._since = time.monotonic() if self._earlier else None
        self._wave: _Wave | None = None
        self._tries: Counter[Key] = Counter()
        self._futile, self._not_before = 0, 0.0
        self._broken = ""
        self._alone_since: float | None = None  # when nothing but scores was left to be waited for
        self._counts = Scored(edits=len(self._earlier or ()))
        self._placement: Placement | None = None

    @property
    def counts(self) -> Scored | None:
        """How far it has come; None where nothing is scored and there are no rules."""
        return self._counts if self._kinds or self._rules.rules else None

    @property
    def done(self) -> bool:
        """Whether nothing is left to be scored in this run."""
        return self._wave is None and not self._rows_wait

    def reserved(self) -> Scorers:
        """What runs now."""
        runs = self._wave is not None and self._placement is not None
        return self._placement.scorers if runs and self._placement else Scorers()

    def before_storing(self, results: pa.Table) -> pa.Table:
        """What the writer gets of results that groups made, or that were refused."""
        if self._kinds or not self._rules.rules:
            return results
        results = decided(results, self._rules)
        self._count_verdicts(results)
        return results

    def made(self, results: pa.Table) -> None:
        """Results that the writer has. Those of edits wait for their scores from now on."""
        stored = results.filter(pa.array([one == "ok" for one in results["status"].to_pylist()]))
        if not self._kinds or not stored.num_rows:
            return
        self._counts = replace(self._counts, edits=self._counts.edits + stored.num_rows)
        if self._broken:
            self._give_up(stored.num_rows, self._broken)
            return
        self._waiting.add(stored)
        self._since = self._since or time.monotonic()

    def tick(
        self, placement: Placement, *, last: bool = False, hold: bool = False
    ) -> Iterator[pa.Table]:
        """Look after the waves. Called several times a second.

        Args:
            placement: of the groups of now, with the scorers.
            last: no more edits come.
            hold: begin no wave: storage takes nothing, or the run is to stop.

        Yields:
            Result rows with their scores, for the writer.
        """
        self._alone_since = (self._alone_since or time.monotonic()) if last else None
        if self._wave is not None:
            tables, end = self._wave.execution.so_far()
            for table in tables:
                if (scored := self._take(self._wave, table)).num_rows:
                    yield scored
            if end or self._is_hopeless(self._wave):
                self._end(self._wave, end)
        if self._wave is None and not hold and self._is_due(last):
            self._begin(placement)

    @property
    def _rows_wait(self) -> int:
        return len(self._waiting) + len(self._earlier or ())

    def _is_due(self, last: bool) -> bool:
        rows, now = self._rows_wait, time.monotonic()
        if not rows or now < self._not_before:
            return False
        late = self._since is not None and now - self._since >= GATHER_S
        return last or late or rows >= ENOUGH

    def _begin(self, placement: Placement) -> None:
        self._placement, self._wave = placement, (wave := _Wave())
        rows = self._waiting.take(ROWS)
        self._since = time.monotonic() if self._rows_wait else None
        wave.rows = rows
        earlier = self._earlier if rows is None else None

        def made() -> Any:
            if earlier is not None:
                wave.rows = earlier.take(ROWS)
            return None if wave.rows is None else scoring_graph(self._job, wave.rows, placement)

        wave.execution = Execution(made)
        self._on_thread(wave.execution.thread)

    def _take(self, wave: _Wave, table: pa.Table) -> pa.Table:
        """The rows of a block that were scored and are the first of their edits."""
        wave.seen = time.monotonic()
        seconds = sum(table[SECONDS].to_pylist())
        reasons = table[GIVEN_BACK].to_pylist()
        table = table.drop_columns([SECONDS, GIVEN_BACK])
        chosen = []
        for key, why in zip(keys_of(table), reasons, strict=True):
            chosen.append(why is None and key not in wave.back)
            wave.back.update([key] if why is None else [])
            self._counts = replace(self._counts, trouble=why or self._counts.trouble)
        wave.unloaded += any((why or "").startswith(NOT_LOADED) for why in reasons)
        scored = table.filter(pa.array(chosen, pa.bool_()))
        self._counts = replace(
            self._counts,
            scored=self._counts.scored + scored.num_rows,
            with_errors=self._counts.with_errors + _with_errors(scored),
            seconds=self._counts.seconds + seconds,
        )
        self._count_verdicts(scored)
        return scored

    def _count_verdicts(self, table: pa.Table) -> None:
        if not self._rules.rules:
            return
        verdicts = Counter(table["accepted"].to_pylist())
        self._counts = replace(
            self._counts,
            accepted=self._counts.accepted + verdicts[True],
            rejected=self._counts.rejected + verdicts[False],
        )

    def _is_hopeless(self, wave: _Wave) -> bool:
        """Whether a wave is not waited for any longer."""
        actors = self._placement.scorers.actors if self._placement else 1
        if not wave.back and wave.unloaded >= BLOCKS_OF_A_BROKEN * max(1, actors):
            return True
        late_s = self._job.cluster.stall_deadline_s + longest_block_s(self._job)
        # While groups work nobody waits for it, and they may have the CPUs that it lacks.
        if self._alone_since is None:
            return False
        if time.monotonic() - max(wave.seen, self._alone_since) < late_s:
            return False
        and_judge = " and the deadlines of the judge" * bool(self._job.score.judge)
        self._broken = f"no edit was scored in {late_s:g} s (cluster.stall_deadline_s{and_judge})"
        return True

    def _end(self, wave: _Wave, end: BaseException | str) -> None:
        """A wave is over; what it left is tried again, or given up."""
        wave.execution.leave()
        self._wave = None
        left = wave.left()
        count = left.num_rows if left is not None else 0
        self._note(
            Happened.SCORES_MADE,
            seconds=round(time.monotonic() - wave.began, 3),
            counts={"edits scored": len(wave.back), "edits left": count},
        )
        if not count and end == ENDED:
            self._futile = 0
            return
        why = self._broken or self._why(end)
        self._futile = 0 if wave.back else self._futile + 1
        self._not_before = time.monotonic() + PAUSE_S * self._futile
        if (wave.unloaded and not wave.back) or self._futile >= FUTILE_WAVES:
            self._broken = self._broken or why or "no edit was scored"
        if left is not None and count:
            self._again(left, why)
        if self._broken:
            self._give_up(self._rows_wait, self._broken)
            self._waiting = Held()
            self._earlier = None

    def _why(self, end: BaseException | str) -> str:
        """Why a wave left rows: what Ray says, or what the last of them says that came back."""
        if isinstance(end, Exception):
            return reason(end)
        return (self._lost.of_scoring if self._lost else "") or self._counts.trouble

    def _again(self, left: pa.Table, why: str) -> None:
        """Have rows in a later wave, but for those that were tried too often."""
        keys = keys_of(left)
        self._tries.update(keys)
        may = [self._tries[key] < TRIES for key in keys]
        if again := sum(may):
            self._waiting.add(left.filter(pa.array(may)))
            self._since = self._since or time.monotonic()
        if again < len(keys):
            self._give_up(len(keys) - again, why)

    def _give_up(self, edits: int, why: str) -> None:
        trouble = why or self._counts.trouble or "nobody knows why"
        if edits and (self._counts.trouble != trouble or not self._counts.missing):
            self._note(Happened.SCORES_MISSING, message=trouble, counts={"edits": edits})
        self._counts = replace(self._counts, missing=self._counts.missing + edits, trouble=trouble)


def keys_of(table: pa.Table) -> list[Key]:
    """What names the edit of each row."""
    return list(zip(table["video_id"].to_pylist(), table["edit_id"].to_pylist(), strict=True))


def _with_errors(table: pa.Table) -> int:
    """Rows of which some measure failed."""
    records = (scores.values() for scores in table["scores"].to_pylist())
    return sum(any(one and one["error"] for one in some) for some in records)
