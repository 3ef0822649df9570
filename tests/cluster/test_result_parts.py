"""Files of results that are damaged are set aside; readers bear that files come and go."""

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.garbage import find_garbage
from cluster.results import parts
from cluster.results.compaction import compact, current_rows, find_current, read_current
from cluster.results.damaged import Damaged, setter_aside
from cluster.results.newest import database, newest_rows
from cluster.results.parts import READERS, PartDamaged, part_names, read_part, read_parts
from cluster.results.schema import NEW_WITH_SCORES, SCHEMA, to_parquet
from pipeline.errors import NoMemory, Unreadable
from pipeline.storage import Folder
from tests.cluster.test_results import a_result, store, store_table
from tests.s3_server import s3_server

WHOLE = to_parquet(pa.Table.from_pylist([a_result("w", "a")], schema=SCHEMA))

FOOTER = 8 + int.from_bytes(WHOLE[-8:-4], "little")


def changed(change: Callable[[pa.Table], pa.Table]) -> bytes:
    return to_parquet(change(pq.read_table(pa.BufferReader(WHOLE))))


DAMAGED = {
    "cut": (WHOLE[:-9], "cannot be read: ArrowInvalid"),
    "cut in the middle": (WHOLE[: len(WHOLE) // 2], "cannot be read: ArrowInvalid"),
    "empty": (b"", "is empty"),
    "no Parquet file": (b"x" * 100, "cannot be read: ArrowInvalid"),
    "zeros in its footer": (WHOLE[:-FOOTER] + bytes(FOOTER - 8) + WHOLE[-8:], "cannot be read: "),
    "zeros in its rows": (b"PAR1" + bytes(2000) + WHOLE[2004:], "cannot be read: "),
    "of something else": (
        to_parquet(pa.table({"caption": ["a cat"]})),
        "has no column 'video_id'; expected a file of results",
    ),
    "without ids": (changed(lambda t: t.drop_columns(["edit_id"])), "has no column 'edit_id'"),
    "with numbers for ids": (
        changed(lambda t: t.set_column(0, "video_id", pa.array([7]))),
        "has a column 'video_id' of int64; expected string",
    ),
    "with text for numbers": (
        changed(lambda t: t.drop_columns(["attempts"]).append_column("attempts", pa.array(["x"]))),
        "has a column 'attempts' of string; expected int64",
    ),
}
"""By kind: the file, and what is said of it."""


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    with s3_server() as environment:
        yield environment


@pytest.fixture(params=["local", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(f"memory://{tmp_path}" if request.param == "memory" else str(tmp_path))


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_named_and_set_aside_and_the_rest_is_read(
    output: Folder, kind: str
) -> None:
    data, said = DAMAGED[kind]
    store(output, "r1", a_result("v", "a"))
    output.write("results/r2-000000.parquet", data)
    found, notes = list[Damaged](), list[str]()
    assert [name for name, _ in read_parts(output, None, found.append)] == [
        "results/r1-000000.parquet"
    ]
    (damaged,) = found
    assert str(damaged).startswith(f"results {output.uri}/results/r2-000000.parquet: {said}")
    assert len(part_names(output)) == 2, "reading alone changes nothing"
    compact(output, "r3", setter_aside(notes.append))
    if not notes:  # only columns are damaged that compaction had no reason to read
        setter_aside(notes.append)(damaged)
    (note,) = notes
    (aside,) = output.list("results/.damaged")
    assert aside.startswith("results/.damaged/r2-000000-")
    assert output.read(aside) == data
    assert f"{damaged}. It was moved to {aside}" in note
    assert part_names(output) == ["results/r1-000000.parquet"]
    assert [row["video_id"] for row in current_rows(output)] == ["v"]


def test_compaction_leaves_and_sets_aside_what_it_cannot_read(output: Folder) -> None:
    store(output, "r1", a_result("v", "a"))
    output.write("results/r2-000000.parquet", DAMAGED["zeros in its rows"][0])
    store(output, "r3", a_result("v", "a", minute=1))
    notes: list[str] = []
    compact(output, "r4", setter_aside(notes.append))
    assert [row["video_id"] for row in current_rows(output)] == ["v"]
    assert part_names(output) == ["results/r4-compact-000000.parquet"]
    assert len(notes) == 1


def test_where_results_are_damaged_no_trajectory_is_deleted(output: Folder) -> None:
    store(output, "r1", a_result("v", "a", trajectory="named"))
    output.write("trajectories/other/index.json", b"x")
    output.write("trajectories/other/.shard.abc", b"x")
    found = [one.key for one in find_garbage(output, "always")]
    assert found == ["other"]
    output.write("results/r2-000000.parquet", WHOLE[:-9])
    damaged: list[Damaged] = []
    (left,) = find_garbage(output, "until_done", on_damaged=damaged.append)
    assert left.files == ("trajectories/other/.shard.abc",), "only what was left half written"
    assert len(damaged) == 1


def test_a_reader_lists_again_where_files_were_put_together_meanwhile(output: Folder) -> None:
    for number in range(4):
        store(output, f"r{number}", a_result(f"v{number}", "a"))
    parts = read_parts(output, ["video_id"])
    seen = [next(parts)[1]["video_id"][0].as_py()]
    compact(output, "r9")
    seen += [video for _, table in parts for video in table["video_id"].to_pylist()]
    assert set(seen) == {"v0", "v1", "v2", "v3"}


def test_storage_that_does_not_answer_is_no_damage(
    output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(output, "r1", a_result("v", "a"))

    def refuse(self: Folder, name: str) -> bytes:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(Folder, "read", refuse)
    with pytest.raises(Unreadable, match="r1-000000.*may not be read") as raised:
        list(read_parts(output))
    assert not isinstance(raised.value, PartDamaged)


@pytest.mark.parametrize("where", ["opened", "read"])
def test_a_file_for_which_there_is_no_memory_is_no_damaged_one(
    output: Folder, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    store(output, "r1", a_result("v", "a"))

    class Full(pq.ParquetFile):
        def __init__(self, *args: object, **kwargs: object) -> None:
            if where == "opened":
                raise pa.ArrowMemoryError("malloc of size 268435456 failed")
            super().__init__(*args, **kwargs)

        def read(self, *args: object, **kwargs: object) -> pa.Table:
            raise pa.ArrowMemoryError("malloc of size 268435456 failed")

        iter_batches = read

    current = find_current(output)
    monkeypatch.setattr(pq, "ParquetFile", Full)
    for read in (
        lambda: list(read_parts(output, None, setter_aside(pytest.fail))),
        lambda: list(read_current(output, current)),
        lambda: compact(output, "r2", setter_aside(pytest.fail)),
    ):
        with pytest.raises(NoMemory, match=r"r1-000000.parquet: .* memory .*malloc of size 26"):
            read()
    assert part_names(output) == ["results/r1-000000.parquet"]


@pytest.mark.parametrize("bytes_ahead", [0, 3, 1000])
def test_files_are_read_ahead_as_far_as_their_rows_have_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_ahead: float
) -> None:
    output = Folder(f"memory://{tmp_path}")
    rows = [a_result("v", f"e{number}", prompt="a red ring") for number in range(100)]
    for number in range(40):
        store(output, f"r{number:02d}", *rows)
    size = read_part(output, part_names(output)[0]).nbytes
    monkeypatch.setattr(parts, "AHEAD_BYTES", int(size * bytes_ahead))
    opened: list[str] = []
    read = Folder.read

    def counted(self: Folder, name: str) -> bytes:
        opened.append(name)
        return read(self, name)

    monkeypatch.setattr(Folder, "read", counted)
    most = {0: 0, 3: 3, 1000: READERS}[bytes_ahead]
    for done, (name, table) in enumerate(read_parts(output), 1):
        assert name == part_names(output)[done - 1]
        assert table.num_rows == 100
        assert len(opened) <= done + most
    assert done == 40


def test_a_column_that_older_files_lack_is_null(output: Folder) -> None:
    older = changed(lambda t: t.drop_columns(["size_bytes"]))
    output.write("results/r1-000000.parquet", older)
    table = read_part(output, "results/r1-000000.parquet", ["size_bytes", "video_id", "mine"])
    assert table.to_pylist() == [{"size_bytes": None, "video_id": "w", "mine": None}]
    assert table.schema.field("size_bytes").type == pa.int64()


def test_the_newest_rows_are_a_table(output: Folder) -> None:
    columns = {"id": "video_id || '/' || edit_id", "ok": "status = 'ok'"}
    with database() as tables:
        assert newest_rows(tables, output, columns) == 0
    store(output, "r1", a_result("v", "a", "failed", 5), a_result("v", "b"), a_result("w", "a"))
    store(output, "r2", a_result("v", "a", minute=1), a_result("v", "b", "failed"))
    store(output, "r3", a_result("w", "a", "failed", 9, fingerprint=None))
    with database() as tables:
        assert newest_rows(tables, output, columns) == 3
        found = tables.execute("SELECT * FROM newest ORDER BY id").fetchall()
    assert found == [("v/a", False), ("v/b", False), ("w/a", True)]


@pytest.mark.s3
def test_damaged_files_are_set_aside_on_s3(
    s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").mkdirs("results-of-jobs", exist_ok=True)
    output, notes = Folder("s3://results-of-jobs/damaged"), list[str]()
    for number in range(9):
        store(output, f"r{number:02d}", a_result(f"v{number}", "a"))
    output.write("results/r05-000000.parquet", b"")
    compact(output, "r99", setter_aside(notes.append))
    assert len(part_names(output)) == 1
    assert len(current_rows(output)) == 8
    assert len(notes) == 1


OWN: dict[str, object] = {"mask": "yes", "scores": 0.5, "accepted": "by Ann", "round": "first"}
OWN |= {"candidates": ["x", "y"], "instruction": "make it red", "rejected_for": 3}
"""Columns of a manifest that have the names of columns of results by now."""


def of_before(*rows: dict, **own: object) -> pa.Table:
    """Results as the version before wrote them, with columns that its manifest had."""
    table = pa.Table.from_pylist([*rows], schema=SCHEMA).drop_columns([*NEW_WITH_SCORES])
    for name, value in own.items():
        table = table.append_column(name, pa.array([value] * len(rows)))
    return table


def test_columns_of_the_manifest_that_are_columns_of_results_by_now_stay_beside_them(
    tmp_path: Path,
) -> None:
    output = Folder(str(tmp_path))
    store_table(output, "r1", of_before(a_result("v", "a"), a_result("w", "a"), **OWN))
    store(output, "r2", a_result("w", "a", mask="masks/w/a.mp4"))
    expected = {f"manifest_{name}": value for name, value in OWN.items()}
    for _ in range(2):
        old, new = current_rows(output)
        assert {name: old[name] for name in expected} == expected
        assert not any(old.get(name) for name in OWN)
        assert (new["video_id"], new["mask"]) == ("w", "masks/w/a.mp4")
        compact(output, "r3")
    assert [name.partition("-")[0] for name in part_names(output)] == ["results/r3"]


def test_a_name_that_the_manifest_has_too_gets_another_one(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    store_table(output, "r1", of_before(a_result("v", "a"), round=2, manifest_round="a"))
    (row,) = current_rows(output)
    assert (row["manifest_manifest_round"], row["manifest_round"]) == (2, "a")
