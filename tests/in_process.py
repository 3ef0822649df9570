"""A job in this process: its graph without Ray, its ranks without processes of their own.

It is for tests that ask what is made, refused and shown, where Ray changes nothing: the graph, its
stages and the program of a rank are the real ones, and work through the rows one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, cast

import pyarrow as pa
import pytest

from cluster.driver.control import State
from cluster.job import CannotRun, Job
from cluster.layout.placement import Node, Placement, place
from cluster.layout.work import Amount
from cluster.ranks.channel import Beside, whole
from cluster.ranks.failures import GroupCannotStart, failure
from cluster.ranks.messages import Answer, Start, parse_report, parse_request, to_line
from cluster.ranks.process import plain, prepare, values_of

Blocks = Callable[[], Iterator[pa.Table]]


def run_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `retake run` work here until the test ends."""
    from cluster import dataflow
    from cluster.driver import placing
    from cluster.stages import group

    monkeypatch.setattr(dataflow, "connected", lambda *of: nullcontext(placed(*of)))
    monkeypatch.setattr(dataflow, "preflight", lambda _: [])
    monkeypatch.setattr(dataflow, "configure", lambda _: None)
    monkeypatch.setattr(placing, "alive_nodes", list)
    monkeypatch.setattr(placing, "placed_on", lambda job, _, amount, *__: placed(job, amount))
    monkeypatch.setattr(dataflow, "alive_nodes", list)
    monkeypatch.setattr(dataflow, "Control", Control)
    monkeypatch.setattr("ray.data.from_arrow", from_arrow)
    monkeypatch.setattr(group, "RankGroup", Group)
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_WORLD_SIZE", 1)):
        monkeypatch.setenv(name, str(value))


def placed(job: Job, amount: Amount | None = None) -> Placement:
    """Where a job's groups are on a laptop."""
    cpus = {"CPU": 8.0}
    return place(job, [Node("this machine", cpus, cpus)], amount)


class Rows:
    """Of `ray.data.Dataset` what the graph of a job uses."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks

    def map_batches(
        self,
        stage: Callable[..., Any],
        *,
        batch_size: int | None,
        fn_constructor_args: Sequence[Any] | None = None,
        fn_args: Sequence[Any] = (),
        **_: Any,
    ) -> Rows:
        def blocks() -> Iterator[pa.Table]:
            work = stage if fn_constructor_args is None else stage(*fn_constructor_args)
            for table in self.blocks():
                for part in parts(table, batch_size or max(1, len(table))):
                    made = work(part, *fn_args)
                    yield from [made] if isinstance(made, pa.Table) else made

        return Rows(blocks)

    def repartition(self, *, target_num_rows_per_block: int) -> Rows:
        return Rows(lambda: (p for t in self.blocks() for p in parts(t, target_num_rows_per_block)))

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        return self.blocks()


def parts(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    return (table.slice(first, rows) for first in range(0, len(table), rows))


def from_arrow(tables: pa.Table | list[pa.Table]) -> Rows:
    return Rows(lambda: iter([tables] if isinstance(tables, pa.Table) else tables))


class Control:
    """What the stages report, at once; and a report that lets every row start."""

    def __init__(self) -> None:
        self.report = self
        self.events: dict[str, int] = {}
        self.reason = ""

    def attend(self, stage: str, doing: Any = str) -> None: ...

    def happened(self, event: str, times: int = 1) -> None:
        self.events[event] = self.events.get(event, 0) + times

    def broken(self, reason: str) -> None:
        raise CannotRun(f"a rank group could not start: {reason}")

    def repaired(self) -> None: ...

    def may_start(self) -> bool:
        return True

    def begin(self) -> None: ...

    def say(self, word: str) -> None: ...

    def so_far(self) -> State:
        return State(events=self.events)

    at_the_end = so_far


class Unheard:
    """Progress that nobody waits for."""

    def progress(self, did: str) -> None: ...

    def pulse(self) -> None: ...


class Group:
    """A `RankGroup` of one rank. Its messages are read as a rank reads them."""

    def __init__(self, command: Sequence[str], ranks: int, start: Start, **_: Any) -> None:
        assert ranks == 1, "several ranks need processes: mark the test with `ray`"
        self.start_message = start
        self.starts = 1
        self.handle: Any = None

    def doing(self) -> str:
        return ""

    def ready(self) -> None:
        try:
            self.handle = self.handle or prepare(self.start_message, cast(Any, Unheard()))
        except Exception as error:
            raise GroupCannotStart(f"{type(error).__name__}: {error}") from error

    def request(
        self, message: Any, *, alone: bool = False, begin: Callable[[], None] = lambda: None
    ) -> list[Answer]:
        begin()
        request = parse_request(to_line(message))
        try:
            result = self.handle[type(request)](**values_of(request))
            answer = Answer(result=plain(whole(result, self.handle.get(Beside, list)())))
        except Exception as error:
            answer = failure(error)
        report = parse_report(to_line(answer))
        assert isinstance(report, Answer)
        return [report]
