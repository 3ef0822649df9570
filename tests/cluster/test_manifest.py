"""The one reader of a manifest: any type that Parquet holds, any files that say the same."""

from __future__ import annotations

import datetime
import decimal
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.manifest import BATCH_BYTES, ManifestFile, ManifestFiles, carried, common_type
from cluster.results.schema import plain_rows
from jobs.manifest.checks import check_manifest
from jobs.manifest.writing import write_manifest
from pipeline.errors import Unreadable
from tests.pending_rows import pending_of
from tests.small_jobs import a_job

DAY = datetime.date(2024, 2, 29)
TIME = datetime.datetime(2024, 2, 29, 12, 30)
VIEW = pa.string_view()
KINDS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "null": (pa.null(), [None, None]),
    "bool": (pa.bool_(), [True, None]),
    **{str(t): (t, [7, None]) for t in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
    **{str(t): (t, [7, None]) for t in (pa.uint8(), pa.uint16(), pa.uint32())},
    "uint64": (pa.uint64(), [2**64 - 1, None]),
    **{str(t): (t, [0.5, None]) for t in (pa.float16(), pa.float32(), pa.float64())},
    **{str(t): (t, ["猫", None]) for t in (pa.string(), pa.large_string(), VIEW)},
    **{str(t): (t, [b"\xff", None]) for t in (pa.binary(), pa.large_binary(), pa.binary_view())},
    "fixed_size_binary": (pa.binary(2), [b"ab", None]),
    **{
        str(t): (t, [decimal.Decimal("1.50"), None])
        for t in (pa.decimal32(5, 2), pa.decimal64(9, 2), pa.decimal128(20, 2))
    },
    "decimal256": (pa.decimal256(50, 2), [decimal.Decimal("1.50"), None]),
    "date32": (pa.date32(), [DAY, None]),
    "date64": (pa.date64(), [DAY, None]),
    **{str(t): (t, [datetime.time(1, 2), None]) for t in (pa.time32("s"), pa.time64("ns"))},
    **{str(pa.timestamp(u)): (pa.timestamp(u), [TIME, None]) for u in ("s", "ms", "us", "ns")},
    "far": (pa.timestamp("s"), [253_402_300_800, None]),  # the year 10000
    "zoned": (pa.timestamp("us", "Europe/Berlin"), [TIME, None]),
    **{
        str(pa.duration(u)): (pa.duration(u), [datetime.timedelta(hours=1), None])
        for u in ("s", "ms", "us", "ns")
    },
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), ["a", None]),
    "dictionary of numbers": (pa.dictionary(pa.int8(), pa.int64()), [5, None]),
    "list": (pa.list_(pa.int64()), [[1, None], None]),
    "large_list": (pa.large_list(pa.string()), [["a"], None]),
    "fixed_size_list": (pa.list_(pa.int32(), 2), [[1, 2], None]),
    "list_view": (pa.list_view(pa.int64()), [[1, 2], None]),
    "large_list_view": (pa.large_list_view(VIEW), [["a"], None]),
    "list of views": (pa.list_(VIEW), [["a", None], None]),
    "list of lists": (pa.list_(pa.list_view(pa.list_(VIEW))), [[[["a"]], None], None]),
    "list of dictionaries": (pa.list_(pa.dictionary(pa.int32(), pa.string())), [["a"], None]),
    "struct": (pa.struct({"a": pa.int64(), "b": VIEW}), [{"a": 1, "b": "x"}, None]),
    "struct of lists": (pa.struct({"a": pa.list_view(VIEW)}), [{"a": ["x"]}, None]),
    "map": (pa.map_(pa.string(), VIEW), [[("k", "v")], None]),
    "map of lists": (pa.map_(pa.string(), pa.list_view(VIEW)), [[("k", ["v"])], None]),
    "fixed list of lists": (pa.list_(pa.list_view(pa.int8()), 1), [[[1, 2]], None]),
    "uuid": (pa.uuid(), [b"0123456789abcdef", None]),
    "json": (pa.json_(), ['{"a": 1}', None]),
    "bool8": (pa.bool8(), [1, None]),
    "tensor": (pa.fixed_shape_tensor(pa.float32(), (2, 1)), [[1.0, 2.0], None]),
    "opaque": (pa.opaque(pa.string(), "point", "here"), ["x", None]),
}
"""Each type that Parquet holds, with one value and one that is null."""


def a_column(name: str) -> pa.Array:
    kind, values = KINDS[name]
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))
    if pa.types.is_list(kind) and pa.types.is_dictionary(kind.value_type):
        return pa.array(values, pa.list_(pa.string())).cast(kind)
    return pa.array(values, kind)


def a_table(count: int = 2, **columns: Any) -> pa.Table:
    videos = {
        "video": pa.array([f"{n}.mp4" for n in range(count)]),
        "edits": pa.array([[{"prompt": "red"}]] * count),
    }
    return pa.table({**videos, **columns})


def stored(path: Path, table: pa.Table) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return str(path)


def read(uri: str) -> pa.Table:
    return pa.concat_tables(check_manifest(uri).files.tables())


@pytest.mark.parametrize("name", KINDS)
def test_values_of_any_type_are_read_in_one_whose_rows_can_be_taken(
    tmp_path: Path, name: str
) -> None:
    column = a_column(name)
    uri = stored(tmp_path / "m.parquet", a_table(x=column))
    found = read(uri)["x"].combine_chunks()
    expected = pq.read_table(uri)["x"].combine_chunks()
    taken = found.take([1, 0, 1])
    taken.validate(full=True)
    if name != "far":
        assert found.to_pylist() == expected.to_pylist()
        assert taken.to_pylist() == [expected.to_pylist()[n] for n in (1, 0, 1)]
    assert found.type == carried(expected.type)


def test_list_views_in_any_order_and_of_any_part_are_read(tmp_path: Path) -> None:
    values = pa.array(["a", "b", "c"], VIEW)
    view = pa.ListViewArray.from_arrays([2, 0, 0], [1, 2, 0], values)
    column = pa.concat_arrays([view, pa.nulls(1, view.type)])
    uri = stored(tmp_path / "m.parquet", a_table(4, x=column))
    assert read(uri)["x"].to_pylist() == [["c"], ["a", "b"], [], None]


INT, REAL, TEXT = pa.int64(), pa.float64(), pa.string()


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (pa.null(), pa.list_(INT), pa.list_(INT)),
        (pa.int32(), INT, INT),
        (pa.uint8(), pa.int8(), pa.int16()),
        (pa.uint64(), INT, None),
        (pa.int8(), pa.float32(), REAL),
        (pa.float16(), pa.float32(), pa.float32()),
        (TEXT, pa.large_string(), pa.large_string()),
        (pa.binary(), pa.large_binary(), pa.large_binary()),
        (TEXT, pa.binary(), None),
        (TEXT, INT, None),
        (pa.bool_(), INT, None),
        (pa.decimal128(5, 2), pa.decimal128(9, 3), pa.decimal128(9, 3)),
        (pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("us")),
        (pa.timestamp("us"), pa.timestamp("ns"), None),
        (pa.timestamp("us"), pa.timestamp("us", "UTC"), None),
        (pa.date32(), pa.timestamp("us"), None),
        (pa.duration("s"), pa.duration("us"), pa.duration("us")),
        (pa.time32("ms"), pa.time64("ns"), pa.time64("ns")),
        (pa.list_(pa.null()), pa.list_(TEXT), pa.list_(TEXT)),
        (pa.list_(pa.int32()), pa.large_list(INT), pa.large_list(INT)),
        (pa.list_(INT, 2), pa.list_(INT, 3), pa.list_(INT)),
        (pa.list_(INT), pa.list_(TEXT), None),
        (pa.struct({"a": pa.null()}), pa.struct({"a": INT, "b": TEXT}), None),
        (pa.struct({"a": INT}), pa.struct({"a": TEXT}), None),
        (pa.map_(TEXT, pa.int32()), pa.map_(TEXT, INT), pa.map_(TEXT, INT)),
        (pa.uuid(), pa.uuid(), pa.uuid()),
        (pa.uuid(), pa.binary(16), None),
    ],
    ids=str,
)
def test_two_types_have_a_common_one_where_nothing_is_lost(
    one: pa.DataType, other: pa.DataType, both: pa.DataType | None
) -> None:
    if pa.types.is_struct(one) and "b" in str(other):
        both = pa.struct({"a": INT, "b": TEXT})
    assert common_type(one, other) == common_type(other, one) == both


def test_files_that_say_the_same_in_different_types_are_one_manifest(tmp_path: Path) -> None:
    edit = pa.list_(pa.struct({"prompt": VIEW, "seed": pa.int32()}))
    shards = [
        a_table(1, seed=pa.array([None]), n=pa.array([1], pa.int32()), t=pa.array(["a"])),
        a_table(1, seed=pa.array([3.0]), n=pa.array([2**40]), t=pa.array(["b"], VIEW)),
        a_table(
            1,
            seed=pa.array([4]),
            n=pa.array([3], pa.int8()),
            t=pa.array(["c"]).dictionary_encode(),
            edits=pa.array([[{"prompt": "blue", "seed": 9}]], edit),
        ),
        pa.table({"video": pa.array([], REAL), "edits": pa.array([], REAL)}),
    ]
    for place, shard in enumerate(shards):
        stored(tmp_path / f"{place}.parquet", shard)
    rows = read(str(tmp_path)).to_pylist()
    assert [(row["seed"], row["n"], row["t"]) for row in rows] == [
        (None, 1, "a"),
        (3.0, 2**40, "b"),
        (4.0, 3, "c"),
    ]
    assert rows[0]["edits"] == [{"prompt": "red", "seed": None}]
    assert rows[2]["edits"] == [{"prompt": "blue", "seed": 9}]


def test_the_folders_of_a_partitioned_table_are_columns(tmp_path: Path) -> None:
    folders = {
        "seed=3/split=a%2Fb/rank=007": (3, "a/b", "007", 1),
        "seed=4/split=__HIVE_DEFAULT_PARTITION__/rank=12": (4, None, "12", 2),
    }
    for folder, (*_, run) in folders.items():
        stored(tmp_path / folder.replace("rank", f"run={run}/rank") / "0.parquet", a_table(1))
    rows = read(str(tmp_path)).to_pylist()
    assert [(r["seed"], r["split"], r["rank"], r["run"]) for r in rows] == list(folders.values())
    assert check_manifest(str(tmp_path)).extra_columns == ("split", "run", "rank")
    (one,) = read(f"{tmp_path}/seed=4/*/*/*/*.parquet").to_pylist()
    assert (one["run"], one["rank"]) == (2, 12)


def test_pandas_writes_a_partitioned_manifest_whose_seeds_are_read(tmp_path: Path) -> None:
    frame = a_table(4, seed=pa.array([3, 3, 4, 4]), fps=pa.array([8.0, 7.5, 8.0, 7.5])).to_pandas()
    frame.to_parquet(tmp_path / "m", partition_cols=["seed", "fps"])
    rows = read(str(tmp_path / "m")).to_pylist()
    got = sorted((row["video"], row["seed"], row["fps"]) for row in rows)
    assert got == [("0.mp4", 3, 8.0), ("1.mp4", 3, 7.5), ("2.mp4", 4, 8.0), ("3.mp4", 4, 7.5)]


def test_the_rows_of_a_file_can_be_read_by_columns_and_alone(tmp_path: Path) -> None:
    stored(tmp_path / "seed=1" / "a.parquet", a_table(2, x=pa.array([1, 2])))
    stored(tmp_path / "seed=2" / "b.parquet", a_table(1, x=pa.array([3])))
    files = check_manifest(str(tmp_path)).files
    assert len(files) == 2
    (table,) = files.tables_of(files.files[1], ["seed", "x", "nothing"])
    assert table.to_pylist() == [{"x": 3, "seed": 2}]
    assert [t.column_names for t in files.tables(["seed"])] == [["seed"], ["seed"]]


@pytest.mark.parametrize("change", ["a row less", "a row more", "a longer prompt"])
def test_a_file_that_is_replaced_while_a_run_reads_it_is_refused(
    tmp_path: Path, change: str
) -> None:
    path = str(tmp_path / "m.parquet")
    rows = [
        {"video": f"{number}.mp4", "edits": [{"edit_id": "a", "prompt": "a red ring"}]}
        for number in range(4)
    ]
    write_manifest(rows, path)
    files = check_manifest(path).files
    assert sum(table.num_rows for table in files.tables()) == 4
    if change == "a longer prompt":
        rows[2] = rows[2] | {"edits": [{"edit_id": "a", "prompt": "a red ring, and no other"}]}
    write_manifest({"a row less": rows[1:], "a row more": [*rows, rows[0]]}.get(change, rows), path)
    with pytest.raises(Unreadable) as raised:
        list(files.tables(["video"]))
    text = str(raised.value)
    assert text.startswith(f"manifest {path}: has changed since it was checked: 4 rows in ")
    assert text.endswith(
        "Leave a manifest as it is while a run reads it; run again: what is done stays done"
    )


def test_rows_with_one_id_are_told_apart_by_values_that_python_cannot_hold(tmp_path: Path) -> None:
    far = pa.array([253_402_300_800, 253_402_300_801, 0], pa.timestamp("s"))
    table = a_table(3, video_id=pa.array(["a", "a", "b"]), far=far)
    table = table.set_column(0, "video", pa.array(["same.mp4"] * 3))
    files = check_manifest(stored(tmp_path / "m.parquet", table)).files
    rows = pending_of(replace(a_job(), files=files))
    assert (rows.scan.videos, rows.scan.edits, rows.edits) == (3, 3, 3)
    (checked,) = rows
    assert checked.refused["error_code"].to_pylist() == ["duplicate_video_id"]
    assert checked.refused["far"].cast(pa.int64()).to_pylist() == [253_402_300_801_000]
    assert checked.work["far"].cast(pa.int64()).to_pylist() == [253_402_300_800_000, 0]


def test_a_string_that_is_not_utf8_costs_its_row_only(tmp_path: Path) -> None:
    latin = pa.array([b"\xe9.mp4", b"b.mp4", b"c.mp4"]).view(pa.string())
    texts = pa.array([b"ok", b"\xe9", b"ok"]).view(pa.string())
    prompts = pa.StructArray.from_arrays([texts], ["prompt"])
    edits = pa.ListArray.from_arrays([0, 1, 2, 3], prompts)
    table = a_table(3, note=latin).set_column(0, "video", latin).set_column(1, "edits", edits)
    files = check_manifest(stored(tmp_path / "m.parquet", table)).files
    (checked,) = pending_of(replace(a_job(), files=files))
    assert checked.work["video"].to_pylist() == [r"/clips/\xe9.mp4", "/clips/c.mp4"]
    assert [row["note"] for row in plain_rows(checked.work)] == [r"\xe9.mp4", "c.mp4"]
    assert checked.refused["error_code"].to_pylist() == ["bad_value"]
    assert checked.refused["note"].to_pylist() == ["b.mp4"]


def test_rows_with_large_columns_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    """A driver holds several tables: thumbnails of 200 kB would take it gigabytes."""
    path = tmp_path / "m.parquet"
    rng = random.Random(0)
    rows = [{"video": f"{n}.mp4", "thumbnail": rng.randbytes(200_000)} for n in range(200)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    files = ManifestFiles((ManifestFile(str(path)),), pq.read_schema(path))
    tables = list(files.tables())
    assert sum(table.num_rows for table in tables) == 200
    assert max(table.nbytes for table in tables) <= BATCH_BYTES
    (alone,) = files.tables(["video"])
    assert alone.num_rows == 200
