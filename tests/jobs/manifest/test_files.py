"""The files of a manifest: which they are, what they have in common, and what is none."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.manifest.checks import check_manifest
from tests.jobs.manifest.test_checks import refusal, stored, table


def test_a_glob_names_the_files_of_a_manifest(tmp_path: Path) -> None:
    for name in ("a1.parquet", "a2.parquet", "b.parquet"):
        stored(tmp_path, table(), name)
    info = check_manifest(f"{tmp_path}/a?.parquet")
    assert info.files.uris == (f"{tmp_path}/a1.parquet", f"{tmp_path}/a2.parquet")
    assert info.base == str(tmp_path)
    assert "no file or folder matches the pattern" in refusal(f"{tmp_path}/c*.parquet")
    odd = stored(tmp_path, table(), "odd[1].parquet")
    assert check_manifest(odd).files.uris == (odd,)


def test_videos_are_relative_to_the_folder_of_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "m/seed=1").mkdir(parents=True)
    file = stored(tmp_path / "m/seed=1", table(), "0.parquet")
    for uri, base in [
        (file, f"{tmp_path}/m/seed=1"),
        (f"{tmp_path}/m", f"{tmp_path}/m"),
        (f"{tmp_path}/m/", f"{tmp_path}/m"),
        (f"{tmp_path}/*/seed=*/0.parquet", str(tmp_path)),
        (f"simplecache::{file}", f"simplecache::{tmp_path}/m/seed=1"),
    ]:
        assert check_manifest(uri).base == base


def test_a_manifest_in_an_archive_is_read(tmp_path: Path) -> None:
    stored(tmp_path, table(), "0.parquet")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "0.parquet", "m/seed=5/0.parquet")
    info = check_manifest(f"zip://m::{tmp_path}/all.zip")
    assert info.files.uris == (f"zip://m/seed=5/0.parquet::{tmp_path}/all.zip",)
    assert info.base == f"zip://m::{tmp_path}/all.zip"
    assert pa.concat_tables(info.files.tables())["seed"].to_pylist() == [5]


def test_what_writers_hide_is_no_part_of_a_manifest(tmp_path: Path) -> None:
    for folder in ("_temporary", ".ipynb_checkpoints", "_run=1"):
        (tmp_path / folder).mkdir()
        stored(tmp_path / folder, table())
    assert check_manifest(str(tmp_path)).files.uris == (f"{tmp_path}/_run=1/m.parquet",)


def test_a_delta_table_is_refused_since_its_folder_has_deleted_rows(tmp_path: Path) -> None:
    stored(tmp_path, table())
    (tmp_path / "_delta_log").mkdir()
    (tmp_path / "_delta_log/0.json").touch()
    assert "Delta table" in refusal(str(tmp_path))


def test_files_without_rows_say_nothing(tmp_path: Path) -> None:
    stored(tmp_path, table(), "a.parquet")
    stored(tmp_path, pa.table({"video": pa.array([], pa.float64())}), "b.parquet")
    info = check_manifest(str(tmp_path))
    assert (info.files.uris, info.rows) == ((f"{tmp_path}/a.parquet",), 1)


def test_a_real_disagreement_names_both_files_and_types(tmp_path: Path) -> None:
    stored(tmp_path, table(fps=pa.array([None]), note=pa.array([1])), "a.parquet")
    second = stored(tmp_path, table(fps=pa.array([8.0]), note=pa.array(["x"])), "b.parquet")
    third = stored(tmp_path, table(fps=pa.array(["8"]), note=pa.array(["x"])), "c.parquet")
    text = refusal(str(tmp_path))
    assert f"{third}: column 'fps' is string, but in {second} it is double" in text
    assert f"{second}: column 'note' is string, but in {tmp_path}/a.parquet it is int64" in text


def test_a_whole_number_that_a_float_would_round_is_a_disagreement(tmp_path: Path) -> None:
    first = stored(tmp_path, table(n=pa.array([2**53 + 1])), "a.parquet")
    stored(tmp_path, table(n=pa.array([0.5])), "b.parquet")
    assert f"{first}: column 'n' is int64 with values beyond 2^53" in refusal(str(tmp_path))
    stored(tmp_path, table(n=pa.array([2**53])), "a.parquet")
    assert check_manifest(str(tmp_path)).files.schema.field("n").type == pa.float64()


def test_a_column_in_a_file_and_in_its_folder_is_refused_unless_both_say_the_same(
    tmp_path: Path,
) -> None:
    (tmp_path / "seed=3").mkdir()
    stored(tmp_path / "seed=3", table(seed=pa.array([3])))
    info = check_manifest(str(tmp_path))
    assert pa.concat_tables(info.files.tables())["seed"].to_pylist() == [3]
    stored(tmp_path / "seed=3", table(seed=pa.array([4])))
    assert "column 'seed' is in the file, and its folder is seed=3" in refusal(str(tmp_path))


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("seed=three", "the folder seed=three holds no int64"),
        ("edits=a", "'edits' is in the file, and its folder is edits=a"),
        ("status=ok", "'status' is also a column of the results"),
        ("seed=1/seed=2", "give column 'seed' twice"),
    ],
)
def test_a_folder_that_makes_no_column_is_refused(
    tmp_path: Path, folder: str, expected: str
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    stored(tmp_path / folder, table())
    assert expected in refusal(str(tmp_path), reserved=frozenset({"status"}))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.csv", b"video,prompt", "`retake manifest {} manifest.parquet` makes a manifest of it"),
        ("p.jsonl", b"{}", "`retake manifest {} manifest.parquet` makes a manifest of it"),
        ("job.yaml", b"manifest: m.parquet", "it is YAML, as a job file is"),
        ("a.mp4", b"\0\0\0 ftyp", "`retake manifest {} manifest.parquet --prompt TEXT` makes"),
        ("page", b"<!DOCTYPE html>", "it is a web page"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_the_way_out(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert expected.format(tmp_path / name) in refusal(str(tmp_path / name))


def test_a_folder_of_videos_is_pointed_to_the_converter(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    expected = f"`retake manifest {tmp_path} manifest.parquet --prompt TEXT`"
    assert expected in refusal(str(tmp_path))
    (tmp_path / "a.mp4").unlink()
    assert "the folder is empty" in refusal(str(tmp_path))


@pytest.mark.parametrize("name", ["video_path", "uri", "file_name", "clip", "URL"])
def test_a_column_that_looks_like_the_videos_is_suggested(tmp_path: Path, name: str) -> None:
    columns = {"license": pa.array(["x"]), name: pa.array(["a.mp4"])}
    text = refusal(stored(tmp_path, table(video=None, **columns)))
    assert f"Rename {name!r}, if that is what it holds" in text


def test_the_columns_are_listed_where_none_looks_like_the_videos(tmp_path: Path) -> None:
    columns = {"license": pa.array(["x"]), "n": pa.array([1])}
    text = refusal(stored(tmp_path, table(video=None, **columns)))
    assert "'video' is missing" in text and "It has 'license', 'n'" in text


def test_a_caption_is_a_prompt_or_describes_the_source(tmp_path: Path) -> None:
    caption = {"caption": pa.array(["a ball"])}
    text = refusal(stored(tmp_path, table(edits=None, **caption)))
    assert "If 'caption' says what the edited video should show, `retake manifest`" in text
    (warning,) = check_manifest(stored(tmp_path, table(**caption))).warnings
    assert "'caption' passes through" in warning and "'source_prompt'" in warning
