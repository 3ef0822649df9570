"""Rows that wait for their scores: a few in memory, in order, however many there are."""

from pathlib import Path

import pyarrow as pa
import pytest

from cluster.results import held
from cluster.results.held import Held


def rows(first: int, count: int) -> pa.Table:
    return pa.table({"video_id": [f"v{n}" for n in range(first, first + count)]})


def taken(one: Held, most: int) -> list[str]:
    table = one.take(most)
    assert table is not None and table.num_rows <= most
    return table["video_id"].to_pylist()


def test_rows_come_back_in_order_and_what_is_too_much_lies_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(held, "FILE_ROWS", 10)
    monkeypatch.setattr(held, "IN_MEMORY", 25)
    one = Held()
    for first in range(0, 98, 7):
        one.add(rows(first, 7))
    assert len(one) == 98
    files = list(tmp_path.rglob("*.parquet"))
    assert len(files) == 6
    found: list[str] = []
    while len(one):
        found += taken(one, 9)
        if len(found) == 45:
            one.add(rows(98, 2))
    assert found == [f"v{n}" for n in range(100)]
    assert one.take(9) is None
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_disk_without_room_costs_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(held, "FILE_ROWS", 1)
    monkeypatch.setattr(held, "IN_MEMORY", 0)
    monkeypatch.setattr(Path, "write_bytes", full)
    one = Held()
    one.add(rows(0, 3))
    assert taken(one, 10) == ["v0", "v1", "v2"]
