"""Videos that are certainly missing are refused by the driver; any other trouble is the groups'."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from cluster.pending.missing import LOOK_AT_ONCE, MissingVideos, Places
from cluster.pending.rows import _looked_for
from cluster.stages.blocks import EditWork, VideoWork
from pipeline.errors import ErrorCode
from pipeline.storage import write_file
from tests.cluster.test_stages import a_row
from tests.pending_rows import pending_of
from tests.s3_server import ACCESS
from tests.small_jobs import a_job

EDIT = EditWork(edit_id="e", prompt="red")


def work(video: str, edit: EditWork = EDIT) -> VideoWork:
    return VideoWork(video=video, video_id="v", edits=(edit,))


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path}"


def test_a_video_that_is_not_there_is_refused_and_one_that_is_goes_on(folder: str) -> None:
    write_file(f"{folder}/a.mp4", b"video")
    assert MissingVideos(Places.ALL).error_of(f"{folder}/a.mp4") is None
    error = MissingVideos(Places.ALL).error_of(f"{folder}/b.mp4")
    assert error
    assert error.code == ErrorCode.VIDEO_NOT_FOUND
    assert f"{folder}/b.mp4" in error.message
    assert MissingVideos(Places.ALL).error_of(folder), "a folder is no video"


@pytest.mark.parametrize(
    ("places", "looked_at"),
    [(Places.NOWHERE, []), (Places.OBJECTS, ["memory"]), (Places.ALL, ["local", "memory"])],
)
def test_files_of_this_machine_are_looked_for_only_where_it_is_the_only_one(
    places: Places, looked_at: list[str]
) -> None:
    missing = {"local": "/nowhere/a.mp4", "memory": "memory://nowhere/a.mp4"}
    found = [name for name, video in missing.items() if MissingVideos(places).error_of(video)]
    assert found == looked_at


@pytest.mark.parametrize(
    "video",
    [
        "http://127.0.0.1:9/a.mp4",
        "https://127.0.0.1:9/a.mp4",
        "zip://a.mp4::/nowhere/clips.zip",
        "simplecache::memory://nowhere/a.mp4",
        "/nowhere/\0.mp4",
    ],
)
def test_what_nobody_can_tell_goes_on_to_a_group(video: str) -> None:
    assert MissingVideos(Places.ALL).error_of(video) is None


def test_a_store_that_does_not_answer_is_asked_no_more_and_its_videos_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    for name, value in {**ACCESS, **port, "RETAKE_STORAGE_PATIENCE_S": "600"}.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    videos = MissingVideos(Places.ALL)
    assert videos.error_of("s3://bucket/a.mp4") is None
    assert videos.silent == {"s3://bucket"}
    monkeypatch.setattr("cluster.pending.missing.check_file", lambda *_, **__: pytest.fail("asked"))
    assert videos.error_of("s3://bucket/b/c.mp4") is None
    S3FileSystem.clear_instance_cache()


def test_a_video_without_a_pending_edit_is_not_looked_for() -> None:
    refused = EditWork(edit_id="e", error_code=ErrorCode.EMPTY_PROMPT, error="no prompt")
    given = work("/nowhere/a.mp4", refused)
    assert MissingVideos(Places.ALL).looked_for(given) is given


def test_rows_of_missing_videos_come_out_refused_with_their_other_edits(folder: str) -> None:
    write_file(f"{folder}/a.mp4", b"video")
    rows = [
        {**a_row(name, "red", "blue", "a/b"), "video": f"{folder}/{name}.mp4", "split": name}
        for name in "ab"
    ]
    (checked,) = replace(pending_of(a_job(), rows), places=Places.ALL)
    assert checked.work["video"].to_pylist() == [f"{folder}/a.mp4"]
    assert checked.refused["split"].to_pylist() == ["a", "b", "b", "b"]
    assert checked.refused["edit_id"].to_pylist()[1:3] == ["red", "blue"]
    codes = checked.refused["error_code"].to_pylist()
    assert codes == ["bad_edit_id", "video_not_found", "video_not_found", "bad_edit_id"]
    assert set(checked.refused["status"].to_pylist()) == {"failed"}


def test_an_edit_whose_mask_is_missing_is_refused_and_those_beside_it_go_on(folder: str) -> None:
    for name in ("a.mp4", "m.png"):
        write_file(f"{folder}/{name}", b"content")
    masks = {"given": "m.png", "gone": "gone.png", "auto": "auto", "of the row": None}
    row = {**a_row("a", *masks), "video": f"{folder}/a.mp4", "mask": f"{folder}/other.png"}
    for edit, name in zip(row["edits"], masks.values(), strict=True):
        edit["mask"] = f"{folder}/{name}" if name and "." in name else name
    (checked,) = replace(pending_of(a_job(), [row]), places=Places.ALL)
    assert [edit["edit_id"] for edit in checked.work["edits"].to_pylist()[0]] == ["given", "auto"]
    refused = checked.refused.select(["edit_id", "error_code", "error"]).to_pylist()
    assert [(one["edit_id"], one["error_code"]) for one in refused] == [
        ("gone", "bad_mask"),
        ("of the row", "bad_mask"),
    ]
    assert f"the mask {folder}/gone.png: there is no such file" in refused[0]["error"]


def test_few_videos_are_looked_for_ahead() -> None:
    """A process that is to end waits for all that it has asked storage for."""
    asked: list[str] = []

    class Asked:
        def looked_for(self, video: VideoWork) -> VideoWork:
            asked.append(video.video)
            return video

    works = [VideoWork(f"{number}.mp4", str(number)) for number in range(1000)]
    with ThreadPoolExecutor(LOOK_AT_ONCE) as pool:
        found = _looked_for(Asked(), works, pool)  # type: ignore[arg-type]
        assert next(found) is works[0]
    assert len(asked) == 2 * LOOK_AT_ONCE
