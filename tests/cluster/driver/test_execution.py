"""The driver takes what an execution finishes together, and hears how it ends."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from cluster.driver.execution import TICK_S, Execution, WaveEnded, joined


class Dataset:
    """Gives blocks as a `ray.data.Dataset` does, once it is let go."""

    def __init__(self, *blocks: Any) -> None:
        self.blocks = blocks
        self.go_on = threading.Event()

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        for block in self.blocks:
            if block is None:
                self.go_on.wait()
            elif isinstance(block, BaseException):
                raise block
            else:
                yield block


def row(number: int) -> pa.Table:
    return pa.table({"row": [number]})


def test_blocks_that_are_finished_within_a_tick_come_as_one_table() -> None:
    made = list(Execution(Dataset(*map(row, range(100)))).ticks())
    tables = [table for table in made if table is not None]
    assert [n for table in tables for n in table["row"].to_pylist()] == list(range(100))
    assert len(tables) < 10


def test_the_driver_ticks_while_nothing_is_finished() -> None:
    dataset = Dataset(row(1), None, row(2))
    ticks = Execution(dataset).ticks()
    began = time.monotonic()
    first = next(ticks)
    assert first is not None
    assert first["row"].to_pylist() == [1]
    assert [next(ticks), next(ticks)] == [None, None]
    assert time.monotonic() - began >= 2 * TICK_S - 0.01
    dataset.go_on.set()
    assert [table["row"].to_pylist() for table in ticks if table is not None] == [[2]]


def test_what_was_finished_before_an_execution_failed_is_not_lost() -> None:
    taken = []
    with pytest.raises(WaveEnded, match="no node"):
        for table in Execution(Dataset(row(1), row(2), OSError("no node"))).ticks():
            taken += table["row"].to_pylist() if table is not None else []
    assert taken == [1, 2]


def test_only_tables_of_one_schema_are_joined() -> None:
    other = pa.table({"row": ["a"]})
    tables = list(joined([row(1), row(2), other, row(3)]))
    assert [table["row"].to_pylist() for table in tables] == [[1, 2], ["a"], [3]]
