"""What the driver of a run notes in its log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster.events.log import EventLog
from cluster.events.record import Happened, Note, ignore, short_name
from cluster.progress import Counts
from pipeline.storage import Folder

if TYPE_CHECKING:
    import pyarrow as pa

    from cluster.driver.control import Owner
    from cluster.job import Job
    from cluster.layout.placement import Node, Placement
    from cluster.layout.work import Amount

LOOK_S = 5.0
"""The nodes of the cluster are looked at so often."""
JOIN_S = 1.0
"""Ray's head may take long to answer the last look; nobody waits for it."""


@dataclass
class RunEvents:
    """The events of a run, as its driver sees them. Nothing here raises or waits.

    Attributes:
        counts: what was done, once that is known.
    """

    note: Note = ignore
    counts: Counts = field(default_factory=Counts)
    wave: int = 0
    _start: float = field(default_factory=time.monotonic)
    _began: float = 0.0
    _stopping: bool = False

    def planned(self, placement: Placement) -> None:
        """The groups of the run are chosen."""
        pools = [f"{p.stage}: {p.groups} x {max(1, p.size)}" for p in placement.pools] or ["none"]
        if actors := placement.scorers.actors:
            pools.append(f"scoring: {actors} on {placement.scorers.device}")
        self.note(
            Happened.JOB_PLANNED,
            message=f"{placement.layout} layout on {placement.device}; groups x ranks: "
            + "; ".join([", ".join(pools), *placement.notes]),
            counts={p.stage: p.groups for p in placement.pools},
        )

    def wave_began(self, amount: Amount, placement: Placement) -> None:
        self.wave, self._began = self.wave + 1, time.monotonic()
        groups = sum(pool.groups for pool in placement.pools[1:])
        counts = {"videos": amount.videos, "edits": amount.edits, "groups": groups}
        self.note(Happened.WAVE_BEGAN, wave=self.wave, counts=counts)

    def wave_ended(self, left: int) -> None:
        """A wave is over, with so many edits that have no result."""
        seconds = round(time.monotonic() - self._began, 3)
        self.note(Happened.WAVE_ENDED, wave=self.wave, seconds=seconds, counts={"edits left": left})

    def rows_left(self, text: str) -> None:
        self.note(Happened.ROWS_LEFT, wave=self.wave, message=text)

    def refused(self, results: pa.Table) -> None:
        """Results that no group made: of rows that were refused, or given up."""
        # The passthrough columns may hold what Python cannot.
        names = ["video_id", "edit_id", "error_code", "error"]
        for row in results.select(names).to_pylist():
            code, error = row.pop("error_code"), row.pop("error")
            self.note(Happened.EDIT_FAILED, code=code, message=error, **row)

    def ended(self, owners: Mapping[str, Owner], ended: Iterable[tuple[str, int]]) -> None:
        """Owners that were silent were killed.

        Args:
            ended: the node and the process id of each.
        """
        killed = set(ended)
        for name, one in owners.items():
            if (one.node, one.pid) in killed:
                about = {"stage": one.stage, "group": short_name(name), "node": one.node}
                self.note(Happened.OWNER_ENDED, wave=self.wave, **about)

    def stopping(self, asked: bool) -> None:
        """Whether the run is to stop."""
        if asked and not self._stopping:
            self._stopping = True
            self.note(Happened.STOP_ASKED)

    def over(self, error: BaseException | None = None) -> None:
        """The run has come to its end."""
        done = self.counts
        counts = {"edited": done.edited, "failed": done.failed, "inverted": done.inverted}
        about: dict[str, Any] = {"seconds": round(time.monotonic() - self._start, 3)}
        if error is not None:
            text = f"{type(error).__name__}: {error}".rstrip(": ")
            by_signal = isinstance(error, KeyboardInterrupt)
            about |= {"level": "warning" if by_signal else "error", "message": text}
        elif self._stopping:
            self.note(Happened.STOP_DONE)
        self.note(Happened.RUN_ENDED, counts=counts, **about)

    @contextmanager
    def watching(self, look: Callable[[], Sequence[Node]]) -> Iterator[None]:
        """In the block, a thread notes which nodes come and leave.

        Args:
            look: the nodes of now; it may fail.
        """
        end = threading.Event()

        def watch() -> None:
            before: dict[str, str] | None = None
            while not end.is_set():
                with suppress(Exception):  # Ray's head may be busy, or gone
                    now = {node.id: node.name for node in look()}
                    self._compare(now if before is None else before, now)
                    before = now
                end.wait(LOOK_S)

        thread = threading.Thread(target=watch, name="nodes", daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join(JOIN_S)

    def _compare(self, before: Mapping[str, str], now: Mapping[str, str]) -> None:
        for node in now.keys() - before.keys():
            self.note(Happened.NODE_CAME, node=now[node])
        for node in before.keys() - now.keys():
            self.note(Happened.NODE_LEFT, node=before[node])


@contextmanager
def events_of(job: Job, amount: Amount) -> Iterator[RunEvents]:
    """The events of a run, from its beginning to its end, whatever that is."""
    note = EventLog(Folder(job.editing.output), job.run, "driver")
    events = RunEvents(note)
    counts = {"videos": amount.videos, "edits": amount.edits}
    note(Happened.RUN_BEGAN, counts=counts)
    try:
        yield events
    except BaseException as error:
        events.over(error)
        raise
    else:
        events.over()
    finally:
        note.close()
