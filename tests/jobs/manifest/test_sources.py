"""Reading what `retake manifest` converts: parsing, finding videos, and every kind of storage."""

from __future__ import annotations

import uuid
from pathlib import Path

import fsspec
import pytest

from jobs.manifest.conversion.sources import Source
from tests.jobs.manifest.conversions import (
    from_five,
    from_folder,
    from_table,
    prompts,
    put,
    refusal,
    saved,
)


def test_a_folder_may_have_a_name_that_looks_like_a_glob(tmp_path: Path) -> None:
    put(tmp_path, "[x]/a.mp4")
    assert len(from_folder(str(tmp_path / "[x]"), ["p"]).rows) == 1


def test_links_to_videos_are_videos(tmp_path: Path) -> None:
    put(tmp_path, "store/a1b2")
    (tmp_path / "chosen" / "folder.mp4").mkdir(parents=True)
    (tmp_path / "chosen" / "a.mp4").symlink_to(tmp_path / "store" / "a1b2")
    (tmp_path / "chosen" / "gone.mp4").symlink_to(tmp_path / "store" / "gone")
    (row,) = from_folder(str(tmp_path / "chosen"), ["p"]).rows
    assert row["video"] == str(tmp_path / "chosen" / "a.mp4")


def test_a_folder_in_a_store_gives_whole_uris() -> None:
    root = f"memory://{uuid.uuid4().hex}"
    with fsspec.open(f"{root}/in/a.mp4", "wb") as file:
        file.write(b"x")
    (row,) = from_folder(root, ["p"]).rows
    assert row["video"] == f"{root}/in/a.mp4".replace("memory://", "memory:///")


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_and_a_byte_order_mark_are_read(tmp_path: Path, delimiter: str) -> None:
    text = "\ufeff" + delimiter.join(("video ", "prompt")) + "\r\n"
    text += delimiter.join(("a.mp4", "one, two")) + "\r\n" + delimiter + "\r\n"
    (row,) = from_table(saved(tmp_path, text)).rows
    assert prompts(row) == ["one, two"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"[{]", "not valid JSON"),
        (b"video,prompt\n\xff\xfe,x\n", "not UTF-8"),
        (b'video,prompt\n"a.mp4,x\n', "not valid CSV"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_refused_with_its_name(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "source"
    path.write_bytes(content)
    message = refusal(from_table, str(path))
    assert expected in message and str(path) in message


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    message = refusal(from_table, saved(tmp_path, "video,prompt,prompt \na.mp4,red,blue\n"))
    assert "2 columns are called 'prompt'; only one of them would be read. Rename them" in message


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    assert "FileNotFoundError" in refusal(from_table, str(tmp_path / "none.csv"))
    assert "no file matches" in refusal(from_five, str(tmp_path / "edit*.json"))
    assert "s4" in refusal(from_table, "s4://bucket/none.csv")
    assert "no folder" in refusal(from_folder, str(tmp_path / "none"), ["p"])


def test_a_source_may_have_a_name_that_looks_like_a_glob(tmp_path: Path) -> None:
    uri = saved(tmp_path, "video,prompt\na.mp4,one\n", "prompts[1].csv")
    assert len(from_table(uri).rows) == 1


def test_a_source_in_a_store_finds_its_videos_beside_it() -> None:
    root = f"memory://{uuid.uuid4().hex}"
    with fsspec.open(f"{root}/t.csv", "w") as file:
        file.write("video,prompt\nclips/a.mp4,one\n")
    (row,) = from_table(f"{root}/t.csv").rows
    assert row["video"] == f"{root}/clips/a.mp4".replace("memory://", "memory:///")


def test_videos_are_found_by_path_name_or_stem_and_mp4_goes_first(tmp_path: Path) -> None:
    for name in ("b/clip.mp4", "a/clip.mov", "a/clip.webm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = ("clip", "a/clip", "clip.webm", "clip.avi", "/abs/clip.mp4", "other.mp4")
    source = Source(str(tmp_path / "t.csv"), str(tmp_path))
    found = ["b/clip.mp4", "a/clip.mov", "a/clip.webm", "b/clip.mp4", "/abs/clip.mp4", "other.mp4"]
    assert [source.locate(name, str(tmp_path)) for name in names] == [
        str(tmp_path / name) for name in found
    ]
    assert list(source.absent) == ["other.mp4"]
    assert list(source.rivals) == ["clip", "clip.avi"]
    assert source.rivals["clip"] == f"{tmp_path}/b/clip.mp4 is taken, {tmp_path}/a/clip.mov is not"


def test_a_name_in_two_folders_is_a_warning(tmp_path: Path) -> None:
    put(tmp_path, "a/x.mp4", "b/x.mp4", "b/y.mp4")
    uri = saved(tmp_path, "video,prompt\nx.mp4,one\ny.mp4,one\nb/x.mp4,one\n", "t.csv")
    converted = from_table(uri, videos=str(tmp_path))
    assert [row["video"] for row in converted.rows] == [
        str(tmp_path / name) for name in ("a/x.mp4", "b/y.mp4", "b/x.mp4")
    ]
    (warning,) = converted.warnings
    assert warning.startswith("1 name in more than one folder, such as 'x.mp4': ")
