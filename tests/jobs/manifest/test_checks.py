"""The manifest as a file: what is refused from its footers, and what is written."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from cluster.rows import check_row
from cluster.stages.blocks import RESERVED
from jobs.errors import ManifestError, nearest
from jobs.manifest.checks import check_manifest
from jobs.manifest.schema import EDIT, SCHEMA
from jobs.manifest.writing import write_manifest

ROWS: list[dict[str, Any]] = [
    {
        "video": "clips/cube.mp4",
        "edits": [{"edit_id": "red", "prompt": "a red cube", "guidance_scale": 4.0, "seed": 1}],
        "license": "CC0",
    },
    {
        "video": "clips/ball.mp4",
        "video_id": "ball",
        "source_prompt": "a ball",
        "edits": [{"prompt": "a blue ball"}, {"prompt": "a green ball"}],
        "start_frame": 2,
        "num_frames": 9,
        "fps": 8.0,
        "seed": 3,
    },
]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    write_manifest(ROWS, str(tmp_path / "new" / "m.parquet"))
    return tmp_path / "new" / "m.parquet"


def table(**columns: Any) -> pa.Table:
    """A minimal good manifest with some columns replaced, or left out where the value is None."""
    full = {
        "video": pa.array(["a.mp4"]),
        "edits": pa.array([[{"prompt": "p"}]], pa.list_(EDIT)),
        **columns,
    }
    return pa.table({name: column for name, column in full.items() if column is not None})


def stored(tmp_path: Path, content: pa.Table, name: str = "m.parquet") -> str:
    pq.write_table(content, tmp_path / name)
    return str(tmp_path / name)


def refusal(uri: str, **options: Any) -> str:
    with pytest.raises(ManifestError) as caught:
        check_manifest(uri, **options)
    return str(caught.value)


def test_a_written_manifest_is_accepted_and_described(manifest: Path) -> None:
    info = check_manifest(str(manifest))
    assert info.files.uris == (str(manifest),)
    assert (info.rows, info.edits) == (2, 3)
    assert info.columns == (*SCHEMA.names, "license")
    assert info.extra_columns == ("license",)
    assert info.warnings == ()


def test_what_is_written_is_read_back_and_passes_the_row_check(manifest: Path) -> None:
    rows = pq.read_table(manifest).to_pylist()
    assert rows[1]["edits"][1] == {
        **dict.fromkeys(field.name for field in EDIT),
        "prompt": "a green ball",
    }
    assert [row["license"] for row in rows] == ["CC0", None]
    checked = [check_row(row, base="/data").video for row in rows]
    assert checked[0].video == "/data/clips/cube.mp4"
    assert (checked[1].start_frame, checked[1].num_frames, checked[1].seed) == (2, 9, 3)
    assert len(checked[1].edits) == 2 and not check_row(rows[1]).failures


def test_the_written_file_has_the_schema_first_and_is_zstd(manifest: Path) -> None:
    parquet = pq.ParquetFile(manifest)
    for index, field in enumerate(SCHEMA):
        assert parquet.schema_arrow.field(index).equals(field)
    assert parquet.metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_manifest_in_memory_is_a_uri_like_any_other() -> None:
    uri = f"memory://{uuid.uuid4().hex}/m.parquet"
    write_manifest(ROWS, uri)
    info = check_manifest(uri)
    assert info.rows == 2
    assert info.files.uris == (uri.replace("memory://", "memory:///"),)


def test_a_folder_of_files_is_one_manifest(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet"):
        stored(tmp_path, table(), name)
    (tmp_path / "_SUCCESS").touch()
    info = check_manifest(str(tmp_path))
    assert info.files.uris == (str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet"))
    assert (info.rows, info.edits) == (2, 2)


def test_a_jobs_output_inside_of_the_manifests_folder_is_left_out(tmp_path: Path) -> None:
    stored(tmp_path, table(), "a.parquet")
    (tmp_path / "out/results").mkdir(parents=True)
    stored(tmp_path / "out/results", pa.table({"status": ["ok"]}), "r.parquet")
    info = check_manifest(str(tmp_path), leave_out=str(tmp_path / "out"))
    assert info.files.uris == (str(tmp_path / "a.parquet"),)
    with pytest.raises(ManifestError):
        check_manifest(str(tmp_path))


def test_a_manifests_folder_inside_of_the_jobs_output_is_read(tmp_path: Path) -> None:
    (tmp_path / "manifest").mkdir()
    stored(tmp_path / "manifest", table(), "a.parquet")
    info = check_manifest(str(tmp_path / "manifest"), leave_out=str(tmp_path))
    assert info.files.uris == (str(tmp_path / "manifest" / "a.parquet"),)


def test_a_manifests_folder_that_is_the_jobs_output_is_read_without_its_results(
    tmp_path: Path,
) -> None:
    stored(tmp_path, table(), "a.parquet")
    (tmp_path / "results").mkdir()
    stored(tmp_path / "results", pa.table({"status": ["ok"]}), "r.parquet")
    info = check_manifest(str(tmp_path), leave_out=str(tmp_path))
    assert info.files.uris == (str(tmp_path / "a.parquet"),)


@pytest.mark.parametrize("value", [2**64, "cut \ud83d"])
def test_a_passthrough_value_that_no_column_holds_becomes_json_text(
    tmp_path: Path, value: object
) -> None:
    uri = str(tmp_path / "m.parquet")
    row = {"video": "a.mp4", "edits": [{"prompt": "p"}], "other": value}
    write_manifest([row, row | {"other": None}], uri)
    (first, second) = pq.read_table(uri)["other"].to_pylist()
    assert json.loads(first) == value
    assert second is None


def test_only_the_footer_is_read(tmp_path: Path) -> None:
    uri = stored(tmp_path, table())
    data = bytearray(Path(uri).read_bytes())
    end = len(data) - 8 - pq.read_metadata(uri).serialized_size
    data[4:end] = bytes(end - 4)
    Path(uri).write_bytes(data)
    with pytest.raises((OSError, pa.ArrowException)):
        pq.read_table(uri)
    assert check_manifest(uri).rows == 1


@pytest.mark.parametrize("uri", ["nowhere.parquet", "memory://nowhere-at-all/m.parquet"])
def test_a_missing_manifest_is_refused(uri: str) -> None:
    assert "no such file or folder" in refusal(uri)


def test_an_unknown_protocol_is_refused() -> None:
    assert "s4" in refusal("s4://bucket/m.parquet")


def test_a_folder_without_parquet_is_refused_with_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text("video,prompt\n")
    assert "prompts.csv" in refusal(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "0 bytes"),
        (b"video,prompt\na.mp4,p\n", "not Parquet"),
        (b"PAR1 cut off here", "truncated or damaged"),
    ],
)
def test_a_file_that_is_no_parquet_is_refused_with_its_name(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    bad = tmp_path / "m.parquet"
    bad.write_bytes(content)
    text = refusal(str(bad))
    assert expected in text and str(bad) in text


def test_a_manifest_without_rows_is_refused(tmp_path: Path) -> None:
    assert "no rows" in refusal(stored(tmp_path, table().slice(0, 0)))


def test_a_misspelt_column_is_named_with_the_one_it_was_meant_to_be(tmp_path: Path) -> None:
    uri = stored(tmp_path, table(video=None, vidoe=pa.array(["a.mp4"])))
    text = refusal(uri)
    assert uri in text
    assert "'video' is missing" in text and "'vidoe'" in text


def test_every_problem_is_listed_at_once(tmp_path: Path) -> None:
    uri = stored(
        tmp_path,
        table(
            video=None,
            fps=pa.array(["8"]),
            num_frames=pa.array([b"9"]),
            edits=pa.array([[{"promt": "p", "seed": "1"}]]),
            status=pa.array(["ok"]),
        ),
    )
    text = refusal(uri, reserved=frozenset({"status"}))
    for expected in (
        "'video' is missing; expected string",
        "'fps' has type string; expected double",
        "'num_frames' has type binary; expected int64",
        "no field 'prompt'",
        "unknown field 'promt'; did you mean 'prompt'?",
        "field 'seed' has type string; expected int64",
        "'status' is also a column of the results",
    ):
        assert expected in text


def test_a_column_that_an_older_manifest_had_for_itself_is_refused_with_the_way_out(
    tmp_path: Path,
) -> None:
    own = {"instruction": pa.array(["x"]), "accepted": pa.array([True]), "mask": pa.array([3])}
    text = refusal(stored(tmp_path, table(**own)), reserved=RESERVED)
    for expected in (
        "'instruction' is also a column of the results; 'instruction' is a field of each edit: "
        "move it there, or rename it",
        "'accepted' is also a column of the results; rename it",
        "'mask' has type int64; expected string, the path or URI of a mask; rename the column if "
        "it holds something else",
    ):
        assert expected in text


def test_a_column_of_the_manifest_itself_is_never_reserved(tmp_path: Path) -> None:
    uri = stored(tmp_path, table(seed=pa.array([1])))
    assert check_manifest(uri, reserved=frozenset({"seed", "video_id"})).extra_columns == ()


def test_edits_as_plain_strings_are_refused_with_the_way_out(tmp_path: Path) -> None:
    text = refusal(stored(tmp_path, table(edits=pa.array([["a red cube"]]))))
    assert "list<" in text and '{"prompt": prompt}' in text and "`retake manifest`" in text


def test_a_flat_table_of_prompts_is_pointed_to_the_converter(tmp_path: Path) -> None:
    flat = table(edits=None, prompt=pa.array(["p"]))
    text = refusal(stored(tmp_path, flat), reserved=frozenset({"prompt"}))
    assert "'edits' is missing" in text and "`retake manifest`" in text
    assert "also a column of the results" not in text


@pytest.mark.parametrize(
    "column",
    [
        {"video": pa.array(["a.mp4"], pa.large_string())},
        {"video": pa.array(["a.mp4"]).dictionary_encode()},
        {"source_prompt": pa.array([None])},
        {"start_frame": pa.array([1], pa.int32()), "num_frames": pa.array([9], pa.uint8())},
        {"num_frames": pa.array([9.0])},
        {"fps": pa.array([8], pa.int64())},
        {"fps": pa.array([8.0], pa.float32())},
        {"edits": pa.array([[{"prompt": "p"}]])},
        {"edits": pa.array([[{"seed": 1, "prompt": "p", "edit_id": "x"}]])},
        {
            "edits": pa.array(
                [[{"prompt": "p", "guidance_scale": 4}]],
                pa.large_list(
                    pa.struct({"guidance_scale": pa.float32(), "prompt": pa.large_string()})
                ),
            )
        },
    ],
)
def test_a_type_that_carries_the_same_values_is_accepted(
    tmp_path: Path, column: dict[str, pa.Array]
) -> None:
    uri = stored(tmp_path, table(**column))
    assert check_manifest(uri).edits == 1
    assert len(check_row(pq.read_table(uri).to_pylist()[0]).video.edits) == 1


def test_files_that_differ_are_named(tmp_path: Path) -> None:
    stored(tmp_path, table(), "a.parquet")
    other = stored(tmp_path, table(fps=pa.array([8.0])), "b.parquet")
    broken = tmp_path / "c.parquet"
    broken.write_bytes(b"nothing")
    text = refusal(str(tmp_path))
    assert f"{other}: column 'fps' is double" in text and "missing" in text
    assert f"{broken}: the file is not Parquet" in text


def test_a_column_that_looks_misspelt_is_a_warning(tmp_path: Path) -> None:
    info = check_manifest(stored(tmp_path, table(start_frames=pa.array([1]))))
    assert info.extra_columns == ("start_frames",)
    assert len(info.warnings) == 1 and "'start_frame' is a known name" in info.warnings[0]


def test_a_column_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays(
        [table()["video"], table()["video"], table()["edits"]], names=["video", "video", "edits"]
    )
    assert "'video' occurs 2 times" in refusal(stored(tmp_path, twice))


def test_edits_are_not_counted_without_statistics(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "m.parquet", write_statistics=False)
    assert check_manifest(str(tmp_path / "m.parquet")).edits is None


def test_only_edits_with_a_prompt_are_counted(tmp_path: Path) -> None:
    edits = pa.array([[{"prompt": "p"}, {"prompt": None}], [], None], pa.list_(EDIT))
    uri = stored(tmp_path, table(video=pa.array(["a", "b", "c"]), edits=edits))
    assert check_manifest(uri).edits == 1


def test_other_columns_pass_through_as_they_are(tmp_path: Path) -> None:
    uri = str(tmp_path / "m.parquet")
    extra = [{"n": 1, "tags": ["a"], "mixed": 1, "box": {"x": 1}, "gap": None}]
    extra += [{"n": 2, "tags": [], "mixed": "one", "box": {"y": 2}, "gap": None}]
    write_manifest([{**row, **more} for row, more in zip(ROWS, extra, strict=True)], uri)
    rows = pq.read_table(uri).to_pylist()
    assert [row["n"] for row in rows] == [1, 2]
    assert [row["tags"] for row in rows] == [["a"], []]
    assert [row["mixed"] for row in rows] == ["1", "one"]
    assert [row["box"] for row in rows] == ['{"x": 1}', '{"y": 2}']
    assert [row["gap"] for row in rows] == [None, None]


def test_a_table_is_written_with_its_own_types_beside_the_schema(tmp_path: Path) -> None:
    uri = str(tmp_path / "m.parquet")
    mixed = table(
        n=pa.array([1], pa.int16()),
        edits=pa.array([[{"seed": 1, "prompt": "p"}]]),
        video=pa.array(["a.mp4"], pa.large_string()),
    )
    write_manifest(mixed, uri)
    back = pq.read_table(uri)
    assert back.schema.names == [*SCHEMA.names, "n"]
    assert back.schema.field("n").type == pa.int16()
    assert back.schema.field("edits").type == SCHEMA.field("edits").type
    assert back["edits"][0].as_py()[0]["seed"] == 1


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], "no rows"),
        ([{"edits": [{"prompt": "p"}]}], "'video'"),
        ([{"video": "a.mp4", "fps": "fast", "edits": []}], "'fps'"),
        ([{"video": "a.mp4", "source_prompt": "\ud800"}], "'source_prompt'"),
    ],
)
def test_rows_that_do_not_fit_are_not_written(
    tmp_path: Path, rows: list[dict[str, Any]], expected: str
) -> None:
    target = tmp_path / "m.parquet"
    with pytest.raises(ManifestError, match=expected):
        write_manifest(rows, str(target))
    assert not target.exists()


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ManifestError, match="cannot be written"):
        write_manifest(ROWS, str(tmp_path / "file" / "m.parquet"))


def test_a_file_that_storage_keeps_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = stored(tmp_path, table())

    def deny(*args: object, **kwargs: object) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(LocalFileSystem, "open", deny)
    assert f"{uri}: may not be read (not yours)" in refusal(uri)
    monkeypatch.setattr(LocalFileSystem, "info", deny)
    assert "may not be read (not yours)" in refusal(uri)


def test_the_nearest_name_ignores_case_and_is_none_where_nothing_is_near() -> None:
    assert nearest("Edits", SCHEMA.names) == "edits"
    assert nearest("start_fram", SCHEMA.names) == "start_frame"
    assert nearest("license", SCHEMA.names) is None
