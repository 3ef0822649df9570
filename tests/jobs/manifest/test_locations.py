"""Where `retake manifest` writes, and how it names the videos."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.manifest.conversion.formats import Options
from jobs.manifest.conversion.videos import absolute_video
from jobs.manifest.locations import STEPS_UP, Relative
from jobs.manifest.make import make_manifest
from tests.jobs.manifest.conversions import put, refusal, saved


def named(target: Path) -> list[str]:
    return [row["video"] for row in pq.read_table(target).to_pylist()]


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("m.csv", "ends in '.csv'; the last argument is the manifest to write, a Parquet file"),
        ("m.jsonl", "Name it {}/m.parquet"),
        ("m", "has no ending"),
        ("clips", "is a folder; the last argument is the file to write, such as"),
        ("new/", "is a folder"),
        ("b.mp4", "is a video; the last argument is the manifest to write. Add its name"),
    ],
)
def test_the_manifest_must_be_a_parquet_file(tmp_path: Path, to: str, expected: str) -> None:
    put(tmp_path, "clips/a.mp4")
    options = Options(prompts=["p"])
    target = f"{tmp_path}/{to}"
    message = refusal(make_manifest, [str(tmp_path / "clips")], target, options)
    assert expected.format(tmp_path) in message
    assert f"MANIFEST {target}" in message


def test_the_source_is_not_overwritten_and_another_manifest_is(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    target = tmp_path / "m.parquet"
    saved(tmp_path, "video,prompt\na.mp4,one\n", "t.csv")
    make_manifest([str(tmp_path / "t.csv")], str(target), Options())
    before = target.read_bytes()
    (tmp_path / "link").symlink_to(target)
    for source in (target, tmp_path / "link", tmp_path / "*.parquet"):
        message = refusal(make_manifest, [str(source)], str(target), Options())
        assert "is the source too; give it another name" in message
    assert target.read_bytes() == before
    saved(tmp_path, "video,prompt\na.mp4,two\n", "t.csv")
    make_manifest([str(tmp_path / "t.csv")], str(target), Options())
    assert pq.read_table(target).to_pylist()[0]["edits"][0]["prompt"] == "two"


def test_a_dataset_that_moves_keeps_its_videos(tmp_path: Path) -> None:
    put(tmp_path, "old/clips/a.mp4", "old/lists/more/b.mp4")
    target = tmp_path / "old/lists/m.parquet"
    make_manifest([str(tmp_path / "old")], str(target), Options(prompts=["p"]))
    assert named(target) == ["../clips/a.mp4", "more/b.mp4"]
    shutil.move(tmp_path / "old", tmp_path / "new")
    moved = tmp_path / "new/lists"
    assert all((moved / video).is_file() for video in named(moved / "m.parquet"))


def test_paths_are_whole_on_request(tmp_path: Path) -> None:
    put(tmp_path, "clips/a.mp4")
    target = tmp_path / "m.parquet"
    sources, options = [str(tmp_path / "clips/../clips")], Options(prompts=["p"])
    make_manifest(sources, str(target), options, whole_paths=True)
    assert named(target) == [str(tmp_path / "clips/a.mp4")]


@pytest.mark.parametrize(
    ("manifest", "video", "expected"),
    [
        ("/data/set/m.parquet", "/data/set/a.mp4", "a.mp4"),
        ("/data/set/m.parquet", "/data/a.mp4", "../a.mp4"),
        ("/data/1/2/m.parquet", "/data/a.mp4", "../../a.mp4"),
        ("/data/1/2/3/m.parquet", "/data/a.mp4", "/data/a.mp4"),
        ("/data/m.parquet", "/other/a.mp4", "/other/a.mp4"),
        ("/data/m.parquet", "/data/~a.mp4", "./~a.mp4"),
        ("/data/m.parquet", "s3://bucket/a.mp4", "s3://bucket/a.mp4"),
        ("/data/m.parquet", "tar://a.mp4::/data/0.tar", "tar://a.mp4::/data/0.tar"),
        ("s3://bucket/m.parquet", "/data/a.mp4", "/data/a.mp4"),
        ("s3://bucket/m.parquet", "s3://bucket/a.mp4", "s3://bucket/a.mp4"),
    ],
)
def test_videos_near_the_manifest_are_named_from_there(
    manifest: str, video: str, expected: str
) -> None:
    assert STEPS_UP == 2
    assert Relative(manifest)(video) == expected


def test_a_manifest_behind_a_link_does_not_step_out_of_it(tmp_path: Path) -> None:
    put(tmp_path, "real/deep/x", "clips/a.mp4")
    (tmp_path / "link").symlink_to(tmp_path / "real/deep")
    video = str(tmp_path / "clips/a.mp4")
    assert Relative(str(tmp_path / "link/m.parquet"))(video) == video


def test_videos_that_are_not_there_are_named(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    lines = [f"{name}.mp4,one" for name in "abcde"]
    source = saved(tmp_path, "\n".join(["video,prompt", *lines]), "t.csv")
    target = str(tmp_path / "m.parquet")
    (warning,) = make_manifest([source], target, Options()).warnings
    gone = ", ".join(f"{tmp_path}/{name}.mp4" for name in "bcd")
    assert warning == f"4 of 5 videos not found: {gone} and 1 more"
    assert make_manifest([source], target, Options(), check=False).warnings == []
    (tmp_path / "a.mp4").unlink()
    message = refusal(make_manifest, [source], target, Options())
    assert f"none of its videos is there, such as {tmp_path}/a.mp4" in message
    assert "--videos DIR" in message and "--no-check" in message


def test_columns_that_the_results_have_too_are_renamed(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    source = saved(tmp_path, "video,prompt,width,status,split\na.mp4,one,640,ok,train\n", "t.csv")
    target = tmp_path / "m.parquet"
    (warning,) = make_manifest([source], str(target), Options()).warnings
    assert "width to table_width, status to table_status" in warning
    (row,) = pq.read_table(target).to_pylist()
    assert (row["table_width"], row["table_status"], row["split"]) == ("640", "ok", "train")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("../b.mp4", "s3://bucket/b.mp4"),
        ("../../../b.mp4", "s3://bucket/b.mp4"),  # never into another bucket
        ("s3://other/b.mp4", "s3://other/b.mp4"),
        ("/data/b.mp4", "/data/b.mp4"),
    ],
)
def test_a_name_beside_a_list_in_a_bucket_stays_in_the_bucket(name: str, place: str) -> None:
    assert absolute_video(name, "s3://bucket/lists") == place
