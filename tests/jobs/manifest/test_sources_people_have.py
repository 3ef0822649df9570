"""`retake manifest` on what people have: lists, globs, tar files, datasets and loose videos."""

from __future__ import annotations

import io
import json
import tarfile
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.rows import default_video_id
from jobs.manifest.conversion.columns import ColumnOptions
from jobs.manifest.conversion.formats import Options
from jobs.manifest.conversion.kinds import guess_kind
from jobs.manifest.make import Made, make_manifest
from pipeline.storage import local_copy
from tests.jobs.manifest.conversions import prompts, put, refusal, saved


def make(
    folder: Path, *sources: str, columns: ColumnOptions | None = None, **options: Any
) -> tuple[list[dict[str, Any]], Made]:
    """The rows of the manifest `m.parquet` in a folder, made of sources there, and the report."""
    keys = ("kind", "whole_paths", "check")
    rest = {key: options.pop(key) for key in keys if key in options}
    target = str(folder / "m.parquet")
    wishes = Options(columns=columns or ColumnOptions(), **options)
    made = make_manifest([str(folder / source) for source in sources], target, wishes, **rest)
    return pq.read_table(target).to_pylist(), made


def videos(rows: list[dict[str, Any]]) -> list[str]:
    return [row["video"] for row in rows]


def put_tar(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = path.suffix.lstrip(".")
    with tarfile.open(path, "w" if ending == "tar" else f"w:{ending}") as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_one_video_is_a_source(tmp_path: Path) -> None:
    put(tmp_path, "clips/a.MP4")
    rows, made = make(tmp_path, "clips/a.MP4", prompts=["one", "two"])
    assert (videos(rows), made.edits, made.warnings) == (["clips/a.MP4"], 2, [])
    assert rows[0]["video_id"] == default_video_id("a.MP4")
    assert prompts(rows[0]) == ["one", "two"]


def test_several_videos_and_a_glob_give_the_rows_and_ids_of_their_folder(tmp_path: Path) -> None:
    put(tmp_path, "clips/a.mp4", "clips/b.mov", "clips/notes.md")
    folder, _ = make(tmp_path, "clips", prompts=["p"])
    pattern, _ = make(tmp_path, "clips/*", prompts=["p"])
    listed, _ = make(tmp_path, "clips/a.mp4", "clips/b.mov", prompts=["p"])
    assert folder == pattern == listed
    assert videos(folder) == ["clips/a.mp4", "clips/b.mov"]


def test_a_video_that_comes_twice_is_taken_once_with_a_warning(tmp_path: Path) -> None:
    put(tmp_path, "clips/a.mp4")
    (tmp_path / "clips/b.mp4").symlink_to(tmp_path / "clips/a.mp4")
    rows, made = make(tmp_path, "clips", "clips/a.mp4", prompts=["p"])
    assert videos(rows) == ["clips/a.mp4"]
    assert made.warnings == ["2 left out (the same file as a.mp4): b.mp4, a.mp4"]


def test_what_is_no_whole_video_is_left_out_and_named(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "._a.mp4", ".cache/b.mp4", "c.mp4.part", "notes.txt", "__MACOSX/a.mp4")
    (tmp_path / "empty.mp4").touch()
    rows, made = make(tmp_path, "", prompts=["p"])
    assert videos(rows) == ["a.mp4"]
    assert made.warnings == [
        "3 left out (hidden): ._a.mp4, .cache/b.mp4, __MACOSX/a.mp4",
        "1 left out (unfinished download): c.mp4.part",
        "1 left out (empty): empty.mp4",
    ]
    message = refusal(make, tmp_path, "empty.mp4", prompts=["p"])
    assert "has no videos in it" in message and "1 left out (empty): empty.mp4" in message


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    put(tmp_path, "store/sub/a.mp4")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/link").symlink_to(tmp_path / "store")
    (tmp_path / "store/loop").symlink_to(tmp_path / "store")
    (tmp_path / "clips/round").symlink_to(tmp_path / "clips")
    for source in ("clips", "clips/*/sub/*.mp4", "clips/**/*.mp4"):
        rows, _ = make(tmp_path, source, prompts=["p"])
        assert videos(rows) == ["clips/link/sub/a.mp4"]


def test_a_list_has_paths_and_uris_relative_to_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    put(tmp_path, "lists/a.mp4", "clips/b.rm", "home/c.mp4")
    text = "\ufeff# mine\n\na.mp4\r\n  ../clips/b.rm  \n~/c.mp4\ns3://bucket/d e.mp4\n./a.mp4\n"
    saved(tmp_path, text, "lists/clips.txt")
    rows, made = make(tmp_path, "lists/clips.txt", prompts=["p"])
    assert videos(rows) == ["lists/a.mp4", "clips/b.rm", "home/c.mp4", "s3://bucket/d e.mp4"]
    assert made.warnings == ["1 left out (the same file as a.mp4): ./a.mp4 (line 7)"]
    saved(tmp_path, "a.mp4\n../clips\ngone.mp4\n", "lists/bad.txt")
    message = refusal(make, tmp_path, "lists/bad.txt", prompts=["p"])
    assert f"line 2: {tmp_path}/clips is a folder" in message
    rows, made = make(tmp_path, "lists/bad.txt", prompts=["p"], skip_bad=True)
    assert f"1 of 2 videos not found: {tmp_path}/lists/gone.mp4" in made.warnings
    assert "no prompts" in refusal(make, tmp_path, "lists/clips.txt")


def test_the_names_of_a_list_are_looked_up_in_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "clips/sub/a.mp4")
    saved(tmp_path, "a\n", "names.txt")
    rows, _ = make(tmp_path, "names.txt", prompts=["p"], videos=str(tmp_path / "clips"))
    assert (videos(rows), rows[0]["video_id"]) == (["clips/sub/a.mp4"], default_video_id("a"))
    message = refusal(make, tmp_path, "names.txt", prompts=["p"], videos=str(tmp_path / "none"))
    assert "none: there is no such folder" in message


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("clips", {"videos": "/data"}, "--videos /data: "),
        ("t.csv", {"pattern": "*.mp4"}, "--pattern '*.mp4' goes with a folder of videos"),
        ("clips", {"columns": ColumnOptions(video="path")}, "has no columns"),
        ("clips", {"prompts": ["p", "q", "p"]}, "--prompt 'p' is given twice"),
        ("clips", {"prompts": [" "]}, "--prompt is empty"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    tmp_path: Path, source: str, options: dict[str, Any], expected: str
) -> None:
    put(tmp_path, "clips/a.mp4")
    saved(tmp_path, "video\nclips/a.mp4\n", "t.csv")
    assert expected in refusal(make, tmp_path, source, **{"prompts": ["p"], **options})


def test_a_table_may_be_called_txt(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    saved(tmp_path, "path;prompt\na.mp4;one\n", "t.txt")
    assert videos(make(tmp_path, "t.txt")[0]) == ["a.mp4"]


SAMPLE = {
    "./k/000.mp4": b"first",
    "./k/000.txt": b"a tin toy\n",
    "./k/000.json": json.dumps({"caption": "a tin toy", "prompt": "a glass toy", "n": 7}).encode(),
    "001.mp4": b"second",
    "001.json": json.dumps({"caption": "a boat", "prompt": "a leaf", "n": "007"}).encode(),
    "001.txt": b"a boat",
    "001.jpg": b"x",
    "002.txt": b"alone",
    "._001.mp4": b"x",
    "003.mp4": b"",
}


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_tar_file_keeps_its_videos_and_they_open_there(tmp_path: Path, ending: str) -> None:
    put_tar(tmp_path / f"data/00000.{ending}", SAMPLE)
    for source in ("data", f"data/00000.{ending}", f"data/{{00000..00000}}.{ending}"):
        rows, made = make(tmp_path, source)
        assert [row["source_prompt"] for row in rows] == ["a tin toy", "a boat"]
        assert [prompts(row) for row in rows] == [["a glass toy"], ["a leaf"]]
        assert [row["n"] for row in rows] == ["7", "007"]  # mixed types, so as JSON
        assert made.notes == ["prompt from column `prompt`, source prompt from `caption`"]
        assert "1 left out (hidden): ._001.mp4" in made.warnings
        assert "1 left out (empty): 003.mp4" in made.warnings
        assert any(f"002 of 00000.{ending}" in warning for warning in made.warnings)
    assert rows[0]["video_id"] == default_video_id(f"00000.{ending}/k/000.mp4")
    for row, content in zip(rows, (b"first", b"second"), strict=True):
        with local_copy(row["video"]) as (file, _):
            assert file.read() == content


def test_prompts_go_to_every_sample_of_a_tar_file(tmp_path: Path) -> None:
    put_tar(tmp_path / "0.tar", {"a.mp4": b"x", "a.txt": b"a toy", "a.cls": b"3"})
    (row,), _ = make(tmp_path, "0.tar", prompts=["one", "two"])
    assert (prompts(row), row["source_prompt"], row["cls"]) == (["one", "two"], "a toy", "3")
    put_tar(tmp_path / "bare.tar", {"a.mp4": b"x"})
    assert "no prompts" in refusal(make, tmp_path, "bare.tar")


def test_of_two_videos_in_a_sample_one_must_be_named(tmp_path: Path) -> None:
    put_tar(tmp_path / "0.tar", {"a.input.mp4": b"x", "a.output.mp4": b"yy"})
    message = refusal(make, tmp_path, "0.tar", prompts=["p"])
    assert "sample a: it has 2 videos, input.mp4, output.mp4" in message
    assert "--video-column input.mp4" in message
    named = ColumnOptions(video="input.mp4")
    (row,), _ = make(tmp_path, "0.tar", prompts=["p"], columns=named)
    assert row["video"] == f"tar://a.input.mp4::{tmp_path}/0.tar"
    wrong = ColumnOptions(video="inptu.mp4")
    message = refusal(make, tmp_path, "0.tar", prompts=["p"], columns=wrong)
    assert "did you mean 'input.mp4'?" in message


def test_a_tar_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "0.tar", "1.tgz")
    assert "0.tar is no whole tar file" in refusal(make, tmp_path, "0.tar", prompts=["p"])
    assert "rename it to end in .tar.gz" in refusal(make, tmp_path, "1.tgz", prompts=["p"])
    put_tar(tmp_path / "2.tar", {"a.mp4": b"x", "a.json": b"[1]"})
    assert "a.json of 2.tar" in refusal(make, tmp_path, "2.tar", prompts=["p"])


def test_a_video_folder_of_hugging_face_keeps_its_splits(tmp_path: Path) -> None:
    put(tmp_path, "d/train/a.mp4", "d/train/b.mp4", "d/train/more.mp4", "d/test/c.mp4")
    saved(
        tmp_path, "file_name,text,url\na.mp4,a toy,http://x\nb.mp4,a hat,\n", "d/train/metadata.csv"
    )
    saved(tmp_path, '{"file_name": "c.mp4", "text": "a cup"}\n', "d/test/metadata.jsonl")
    rows, made = make(tmp_path, "d", prompts=["p"])
    assert [(row["video"], row["source_prompt"], row["split"]) for row in rows] == [
        ("d/test/c.mp4", "a cup", "test"),
        ("d/train/a.mp4", "a toy", "train"),
        ("d/train/b.mp4", "a hat", "train"),
    ]
    assert made.notes == ["video from column `file_name`, source prompt from `text`"]
    assert made.warnings == ["1 left out (not named in metadata.jsonl): more.mp4"]


def test_parquet_files_of_a_dataset_are_one_table(tmp_path: Path) -> None:
    put(tmp_path, "d/data/a.mp4")
    clip = {"bytes": None, "path": "a.mp4"}
    for split, prompt in (("train", "one"), ("validation", "two")):
        table = pa.Table.from_pylist([{"video": clip, "instruction": prompt}])
        pq.write_table(table, tmp_path / f"d/data/{split}-00000-of-00001.parquet")
    (tmp_path / "d/data/a.mp4").rename(tmp_path / "a.mp4")
    rows, made = make(tmp_path, "d", videos=str(tmp_path))
    assert [(row["video"], prompts(row), row["split"]) for row in rows] == [
        ("a.mp4", ["one", "two"], ["train", "validation"])
    ]
    assert made.notes == ["video from column `video`, prompt from `instruction`"]
    whole = pa.Table.from_pylist([{"video": {"bytes": b"x", "path": None}, "prompt": "p"}])
    pq.write_table(whole, tmp_path / "whole.parquet")
    assert "holds the bytes of a video" in refusal(make, tmp_path, "whole.parquet")


def test_of_a_datasets_tables_the_rows_are_read(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    (tmp_path / "d").mkdir()
    pq.write_table(pa.table({"video": ["a.mp4"], "prompt": ["one"]}), tmp_path / "d/x.parquet")
    saved(tmp_path, {"version": 1}, "d/config.json")
    rows, made = make(tmp_path, "d", videos=str(tmp_path))
    assert (videos(rows), rows[0]["split"] if "split" in rows[0] else None) == (["a.mp4"], None)
    assert made.warnings == ["1 not read beside the other tables: config.json"]


def test_a_metadata_file_of_another_kind_says_how_to_take_the_videos(tmp_path: Path) -> None:
    put(tmp_path, "d/a.mp4")
    saved(tmp_path, "id,size\n1,2\n", "d/metadata.csv")
    message = refusal(make, tmp_path, "d", prompts=["p"])
    assert "no column 'video'" in message and "--format folder takes the videos" in message
    rows, _ = make(tmp_path, "d", prompts=["p"], kind="folder")
    assert videos(rows) == ["d/a.mp4"]


@pytest.mark.parametrize("source", ["", "/*.mp4", "/*", "/a.mp4", "/list.txt", "/d"])
def test_sources_in_a_store_are_read_the_same_way(tmp_path: Path, source: str) -> None:
    root = f"memory://{uuid.uuid4().hex}"
    store = fsspec.filesystem("memory")
    store.pipe_file(f"{root}/a.mp4", b"x")
    store.pipe_file(f"{root}/b.mp4", b"")
    if source == "/list.txt":
        store.pipe_file(f"{root}/list.txt", b"a.mp4\n")
    if source == "/d":
        store.pipe_file(f"{root}/d/train/metadata.csv", b"file_name\n../../a.mp4\n")
    target = str(tmp_path / "m.parquet")
    make_manifest([root + source], target, Options(prompts=["p"]))
    (row,) = pq.read_table(target).to_pylist()
    assert row["video"].endswith("/a.mp4") and row["video"].startswith("memory://")
    assert row.get("split") == ("train" if source == "/d" else None)
    wanted = {"/d": "../../a.mp4"}.get(source, "a.mp4")
    assert row["video_id"] == default_video_id(wanted)
    with local_copy(row["video"]) as (file, _):
        assert file.read() == b"x"


def test_a_tar_file_in_a_store_keeps_its_videos(tmp_path: Path) -> None:
    put_tar(tmp_path / "0.tar", {"a.mp4": b"x"})
    root = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").pipe_file(f"{root}/0.tar", (tmp_path / "0.tar").read_bytes())
    target = f"{root}/m.parquet"
    make_manifest([f"{root}/0.tar"], target, Options(prompts=["p"]))
    with fsspec.open(target, "rb") as file:
        (row,) = pq.read_table(file).to_pylist()
    with local_copy(row["video"]) as (file, _):
        assert file.read() == b"x"


def test_a_saved_dataset_of_arrow_files_is_read(tmp_path: Path) -> None:
    put(tmp_path, "d/a.mp4")
    table = pa.table({"video": [str(tmp_path / "d/a.mp4")], "prompt": ["one"]})
    (tmp_path / "s").mkdir()
    with pa.ipc.new_stream(str(tmp_path / "s/data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table)
    saved(tmp_path, {"features": {}}, "s/dataset_info.json")
    saved(tmp_path, {"_split": None}, "s/state.json")
    assert videos(make(tmp_path, "s")[0]) == ["d/a.mp4"]


def test_a_manifest_may_be_made_anew(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    saved(tmp_path, "video,prompt,seed,kind\na.mp4,one,3,x\na.mp4,two,4,y\n", "t.csv")
    first, _ = make(tmp_path, "t.csv", whole_paths=True)
    assert videos(first) == [str(tmp_path / "a.mp4")]
    (tmp_path / "m.parquet").rename(tmp_path / "old.parquet")
    again, _ = make(tmp_path, "old.parquet")
    assert again == [{**first[0], "video": "a.mp4"}]


def test_a_glob_may_match_the_manifest_beside_its_videos(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    for _ in range(2):
        assert videos(make(tmp_path, "*", prompts=["p"])[0]) == ["a.mp4"]


def test_sources_of_different_formats_do_not_mix(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    saved(tmp_path, "video,prompt\na.mp4,one\n", "t.csv")
    message = refusal(make, tmp_path, "a.mp4", "t.csv", prompts=["p"])
    assert "a.mp4 is read as 'video'" in message and "t.csv as 'table'" in message
    assert guess_kind(str(tmp_path)) == "folder"


def test_a_source_that_is_not_there_says_what_was_expected(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(make, tmp_path, "gone.mp4", prompts=["p"])
    message = refusal(make, tmp_path, "gone.csv")
    assert "gone.csv: there is no such file or folder; expected videos" in message
    assert "no file matches" in refusal(make, tmp_path, "gone/*.mp4", prompts=["p"])
