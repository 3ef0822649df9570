"""The row check: what costs a row, what costs one edit, and which ids are safe file names."""

from __future__ import annotations

import hashlib
import os
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.rows import (
    check_row,
    default_edit_id,
    default_id_of,
    default_video_id,
    display_id,
    id_problem,
)
from pipeline.errors import ErrorCode, RowError

repeatable = settings(derandomize=True, deadline=None)


def row(**columns: Any) -> dict[str, Any]:
    return {"video": "clip.mp4", "edits": [{"prompt": "a red cube"}], **columns}


def refused(**columns: Any) -> RowError:
    with pytest.raises(RowError) as caught:
        check_row(row(**columns))
    return caught.value


def failed_edit(**fields: Any) -> tuple[ErrorCode, str]:
    """The one failure of a row whose second edit has `fields`; its first edit must stand."""
    edits = [{"edit_id": "good", "prompt": "a blue cube"}, {"prompt": "a red cube", **fields}]
    checked = check_row(row(edits=edits))
    assert [edit.edit_id for edit in checked.video.edits] == ["good"]
    (failure,) = checked.failures
    return failure.code, failure.message


def test_a_full_row_comes_back_with_every_value() -> None:
    edit = {
        "edit_id": "red",
        "prompt": "a red cube",
        "negative_prompt": "blur",
        "guidance_scale": 4,
        "seed": 7,
    }
    checked = check_row(
        row(
            video_id="cube 1",
            source_prompt="a cube",
            start_frame=3,
            num_frames=9,
            fps=8,
            seed=1,
            edits=[edit],
            license="CC0",
        ),
        base="/data",
    )
    assert checked.video.video_id == "cube 1"
    assert checked.video.video == "/data/clip.mp4"
    assert checked.video.source_prompt == "a cube"
    assert (checked.video.start_frame, checked.video.num_frames) == (3, 9)
    assert (checked.video.fps, checked.video.seed) == (8.0, 1)
    (made,) = checked.video.edits
    assert (made.edit_id, made.prompt, made.negative_prompt) == ("red", "a red cube", "blur")
    assert (made.guidance_scale, made.seed) == (4.0, 7)
    assert checked.failures == ()


def test_what_a_row_leaves_out_stays_with_the_job() -> None:
    checked = check_row(row(start_frame=None, fps=None))
    assert checked.video.video_id == default_video_id("clip.mp4")
    assert checked.video.video == "clip.mp4"
    assert checked.video.source_prompt is None
    assert (checked.video.start_frame, checked.video.num_frames) == (None, None)
    assert (checked.video.fps, checked.video.seed) == (None, None)
    (edit,) = checked.video.edits
    assert edit.edit_id == default_edit_id("a red cube", None, None, None)
    assert edit.negative_prompt == ""
    assert (edit.guidance_scale, edit.seed) == (None, None)


def test_numbers_may_be_numpy_scalars_and_whole_floats() -> None:
    checked = check_row(
        row(start_frame=np.int32(2), num_frames=9.0, fps=np.float32(8), seed=np.float64(3))
    )
    assert (
        checked.video.start_frame,
        checked.video.num_frames,
        checked.video.fps,
        checked.video.seed,
    ) == (2, 9, 8.0, 3)


@pytest.mark.parametrize("video", [None, "", "  ", 7, b"clip.mp4", "a\x00b.mp4", "a\nb.mp4"])
def test_a_video_that_is_no_path_is_a_bad_uri(video: object) -> None:
    assert refused(video=video).code is ErrorCode.BAD_URI


@pytest.mark.parametrize("video", ["s4://bucket/a.mp4", "S3://b/a.mp4", "simplecache::xx://a.mp4"])
def test_an_unknown_protocol_is_a_bad_uri_that_is_named(video: str) -> None:
    error = refused(video=video)
    assert error.code is ErrorCode.BAD_URI
    assert "unknown protocol" in error.message and video in error.message


@pytest.mark.parametrize(
    "video",
    [
        "s3://b/a.mp4",
        "simplecache::s3://b/a.mp4",
        "https://h/a.mp4?x=1",
        "C:\\a.mp4",
        "été 1.mp4",
        "zip://a.mp4::s3://b/c.zip",
        "s3://b/a.mp4?versionId=1",
        "/d/a::b.mp4",
        "s3://b/a::b.mp4",
        "file:/d/a.mp4",
        "/d/s3:/a.mp4",
        "/d/50%.mp4",
        "/d/a#1.mp4",
        "/d/what?.mp4",
        "~/a.mp4",
    ],
)
def test_a_video_of_any_known_protocol_or_plain_path_is_taken(video: str) -> None:
    assert check_row(row(video=video)).video.video == video


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "a/b",
        "a\\b",
        ".",
        "..",
        "a..b",
        "../../etc/passwd",
        "/etc/passwd",
        ".hidden",
        "dot.",
        " a",
        "a ",
        "a\x00b",
        "a\nb",
        "a\u202eb",
        "a\ud800b",
        "x" * 201,
        "x" * 500,
        "é" * 101,
        *(f"a{ch}b" for ch in '<>:"|?*'),
        "CON",
        "nul.txt",
        7,
        True,
    ],
)
def test_an_id_that_is_no_safe_file_name_is_refused(bad: object) -> None:
    assert refused(video_id=bad).code is ErrorCode.BAD_VIDEO_ID
    assert failed_edit(edit_id=bad)[0] is ErrorCode.BAD_EDIT_ID
    assert id_problem(display_id(bad)) is None


@pytest.mark.parametrize("good", ["a", "a b", "a.b", "_a-1", "été", "猫", "x" * 200, "コ" * 66])
def test_an_id_of_printable_characters_is_taken(good: str) -> None:
    assert check_row(row(video_id=good)).video.video_id == good
    assert check_row(row(edits=[{"edit_id": good, "prompt": "p"}])).video.edits[0].edit_id == good


@repeatable
@given(st.text())
@example("..")
@example("a/../../b")
@example("aux.mp4")
def test_an_accepted_id_is_one_path_segment_everywhere(text: str) -> None:
    if id_problem(text) is None:
        assert os.path.dirname(os.path.normpath(os.path.join("/root", text))) == "/root"
        assert os.path.basename(os.path.join("/root", text)) == text
        assert PureWindowsPath("C:/root", text).parts == ("C:\\", "root", text)
        assert len(f"{text}.mp4".encode()) <= 255


@repeatable
@given(st.text())
@example("")
@example("a/b.mp4?version=1")
@example("s3://b/con.x.mp4")
@example("猫" * 300)
@example("/\ud800.mp4")
def test_every_default_and_display_id_is_itself_a_good_id(text: str) -> None:
    assert id_problem(default_video_id(text)) is None
    assert len(default_video_id(text)) <= 120
    assert id_problem(display_id(text)) is None


def test_default_video_ids_show_the_name_and_tell_folders_apart() -> None:
    first, second = default_video_id("a/clip one.mp4"), default_video_id("b/clip one.mp4")
    assert first != second
    assert first == "clip-one-" + first[-8:] and second.startswith("clip-one-")
    assert default_video_id("https://h/x/clip.mp4?token=/abc").startswith("clip-")
    assert default_video_id("a/clip one.mp4") == first


@pytest.mark.parametrize(
    ("name", "spellings"),
    [
        ("b", ["clips/b.mp4", "./clips/b.mp4", "clips//b.mp4", "x/../clips/./b.mp4"]),
        ("b", ["/d/b.mp4", "//d/b.mp4", "/d/a/../b.mp4", "/../d/b.mp4"]),
        ("b", ["../b.mp4", "x/../../b.mp4"]),
        ("a", ["s3://b/k/a.mp4", "s3://b/k/x/../a.mp4", "s3://b/./k/a.mp4", "s3://b/k/a.mp4/"]),
        ("a", ["s3://b/k//a.mp4", "s3://b/./k//a.mp4"]),
        ("b", ["file:///d/b.mp4", "file:/d/b.mp4", "file://localhost/d/x/../b.mp4"]),
        ("a", ["https://h/x/a.mp4?t=../1", "https://h/y/../x/a.mp4?t=../1"]),
        ("c", ["zip://a.mp4::/d/c.zip", "zip://./a.mp4::/d/e/../c.zip"]),
        ("b", ["C:\\d\\b.mp4"]),
        ("50-25-1", ["a b/50%25#1?.mp4"]),
    ],
    ids=str,
)
def test_one_file_has_one_default_id_and_the_shortest_spelling_keeps_its_own(
    name: str, spellings: list[str]
) -> None:
    digest = hashlib.sha256(spellings[0].encode()).hexdigest()[:8]
    assert {default_video_id(spelling) for spelling in spellings} == {f"{name}-{digest}"}


def test_a_home_folder_in_a_video_has_the_id_of_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert default_video_id("~/a.mp4") == default_video_id("/home/me/a.mp4")
    assert default_video_id("~a.mp4") != default_video_id("/home/me/a.mp4")


def test_the_default_edit_id_depends_on_the_edit_alone() -> None:
    alone = check_row(row()).video.edits[0]
    beside = check_row(row(edits=[{"prompt": "x"}, {"prompt": "a red cube"}])).video.edits[1]
    assert alone.edit_id == beside.edit_id == "edit-" + alone.edit_id[-8:]
    others = [("p", "", 4, 2), ("p", "n", 4, 1), ("p", "", 5, 1), ("q", "", 4, 1), ("p", "4", 1, 1)]
    ids = {default_edit_id(*wishes) for wishes in [("p", "", 4, 1), *others]}
    assert len(ids) == 6
    assert default_edit_id("p", None, 4.0, np.int64(1)) == default_edit_id("p", "", 4, 1)


@pytest.mark.parametrize("edits", [None, [], (), np.array([])])
def test_a_row_without_edits_is_refused(edits: object) -> None:
    assert refused(edits=edits).code is ErrorCode.NO_EDITS


@pytest.mark.parametrize("edits", ["a red cube", {"prompt": "a red cube"}, 3])
def test_edits_that_are_no_list_are_refused(edits: object) -> None:
    assert refused(edits=edits).code is ErrorCode.BAD_VALUE


def test_edits_in_a_numpy_array_are_taken() -> None:
    edits = np.array([{"prompt": "one"}, {"prompt": "two"}], dtype=object)
    assert [edit.prompt for edit in check_row(row(edits=edits)).video.edits] == ["one", "two"]


@pytest.mark.parametrize("prompt", [None, "", " \n"])
def test_an_empty_prompt_costs_its_own_edit_only(prompt: object) -> None:
    assert failed_edit(prompt=prompt)[0] is ErrorCode.EMPTY_PROMPT


def test_an_edit_that_is_a_bare_string_costs_itself_only() -> None:
    checked = check_row(row(edits=[{"prompt": "one"}, "two"]))
    assert len(checked.video.edits) == 1
    assert checked.failures[0].code is ErrorCode.BAD_VALUE


def test_a_row_whose_edits_all_fail_comes_back_with_the_failures() -> None:
    checked = check_row(row(edits=[{"prompt": ""}, {"edit_id": "x", "prompt": " "}]))
    assert checked.video.edits == ()
    assert [failure.code for failure in checked.failures] == [ErrorCode.EMPTY_PROMPT] * 2


def test_the_first_of_two_edits_with_one_id_stands() -> None:
    edits = [{"edit_id": "red", "prompt": text} for text in ("one", "two", "three")]
    checked = check_row(row(edits=edits))
    assert [edit.prompt for edit in checked.video.edits] == ["one"]
    assert {failure.code for failure in checked.failures} == {ErrorCode.DUPLICATE_EDIT_ID}
    shown = [failure.edit_id for failure in checked.failures]
    assert shown == ["red:2", "red:3"]
    assert "1 and 2" in checked.failures[0].message


def test_the_same_prompt_twice_is_a_duplicate_unless_the_seed_differs() -> None:
    twice = check_row(row(edits=[{"prompt": "p"}, {"prompt": "p"}]))
    assert [failure.code for failure in twice.failures] == [ErrorCode.DUPLICATE_EDIT_ID]
    seeded = check_row(row(edits=[{"prompt": "p", "seed": 1}, {"prompt": "p", "seed": 2}]))
    assert len(seeded.video.edits) == 2


@repeatable
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "edit_id": st.sampled_from([None, "a", "b", "a/b", ""]),
                "prompt": st.sampled_from(["p", "q", "", None]),
            }
        ),
        min_size=1,
    )
)
def test_every_edit_is_answered_once_under_an_id_of_its_own(edits: list[dict[str, Any]]) -> None:
    checked = check_row(row(edits=edits))
    ids = [edit.edit_id for edit in checked.video.edits]
    ids += [failure.edit_id for failure in checked.failures]
    assert len(ids) == len(set(ids)) == len(edits)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("start_frame", -1),
        ("start_frame", 1.5),
        ("start_frame", True),
        ("start_frame", "3"),
        ("num_frames", 0),
        ("num_frames", float("nan")),
        ("fps", 0),
        ("fps", -8.0),
        ("fps", float("nan")),
        ("fps", float("inf")),
        ("fps", "8"),
        ("seed", -1),
        ("seed", 2**63),
        ("source_prompt", 5),
    ],
)
def test_a_value_out_of_range_costs_the_row_and_is_named(name: str, value: object) -> None:
    error = refused(**{name: value})
    assert error.code is ErrorCode.BAD_VALUE
    assert name in error.message and "expected" in error.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guidance_scale", -0.5),
        ("guidance_scale", float("nan")),
        ("guidance_scale", float("inf")),
        ("seed", -1),
        ("seed", 0.5),
        ("prompt", 5),
        ("negative_prompt", 5),
    ],
)
def test_a_value_out_of_range_in_an_edit_costs_that_edit(name: str, value: object) -> None:
    code, message = failed_edit(**{name: value})
    assert code is ErrorCode.BAD_VALUE
    assert name in message


def test_a_guidance_scale_of_zero_is_a_value() -> None:
    checked = check_row(row(edits=[{"prompt": "p", "guidance_scale": 0}]))
    assert checked.video.edits[0].guidance_scale == 0.0


@pytest.mark.parametrize(
    ("video", "way_out"),
    [
        ("s3:/bucket/a.mp4", "expected s3://bucket/a.mp4"),
        ("https:/h/a.mp4", "expected https://h/a.mp4"),
        ("zip://a.mp4", "expected zip://a.mp4::LOCATION"),
    ],
)
def test_a_location_that_nothing_opens_is_refused_with_what_to_write(
    video: str, way_out: str
) -> None:
    error = refused(video=video)
    assert error.code is ErrorCode.BAD_URI
    assert video in error.message and way_out in error.message


def test_a_long_value_is_shown_in_part() -> None:
    error = refused(video_id="x" * 5000)
    assert len(error.message) < 300
    assert "5000" in error.message


def test_a_display_id_of_a_good_id_is_the_id() -> None:
    assert display_id("good id") == "good id"
    assert PurePosixPath(display_id("../../etc")).name == display_id("../../etc")
    assert display_id("a/b") != display_id("a?b")


@pytest.mark.parametrize(("length", "whole"), [(78, True), (79, False)])
def test_a_value_is_shown_whole_up_to_80_characters(length: int, whole: bool) -> None:
    shown = str(refused(start_frame="x" * length))
    assert ("x" * length in shown) is whole
    assert (f"({length + 2} characters)" in shown) is not whole


def test_a_printable_value_is_shown_as_it_is() -> None:
    assert "'vidéo'" in str(refused(start_frame="vidéo"))
    assert "'\\x07'" in str(refused(start_frame="\x07"))


def test_a_seed_that_is_no_whole_number_has_an_edit_id_of_its_own() -> None:
    assert default_edit_id("x", "", None, 1.5) != default_edit_id("x", "", None, 1)
    assert default_edit_id("x", "", None, 1.0) == default_edit_id("x", "", None, 1)


@pytest.mark.parametrize(
    ("given", "mask"),
    [
        ("m.png", "/clips/m.png"),
        ("s3://b/x/../m.mp4", "s3://b/m.mp4"),
        ("auto", "auto"),
        ("none", "none"),
    ],
)
def test_a_mask_is_resolved_as_a_video_is_and_the_rows_is_that_of_edits_without(
    given: str, mask: str
) -> None:
    edits = [{"prompt": "p"}, {"prompt": "q", "mask": "own.png"}]
    row = {"video": "a.mp4", "mask": given, "edits": edits}
    made = check_row(row, base="/clips").video.edits
    assert [edit.mask for edit in made] == [mask, "/clips/own.png"]
    alone = check_row({**row, "mask": None}, base="/clips").video.edits
    assert [edit.mask for edit in alone] == [None, "/clips/own.png"]
    assert [edit.edit_id for edit in alone] == [edit.edit_id for edit in made]


@pytest.mark.parametrize(
    "mask", ["", " ", 3, True, b"m.png", ["m.png"], "a\nb", "nope://m", "s3:/b"]
)
def test_a_wrong_mask_costs_the_edits_that_have_it(mask: object) -> None:
    edits = [{"prompt": "p", "mask": mask}, {"prompt": "q"}, {"prompt": "r", "mask": "auto"}]
    checked = check_row({"video": "a.mp4", "edits": edits})
    assert [edit.prompt for edit in checked.video.edits] == ["q", "r"]
    (failure,) = checked.failures
    assert failure.code == ErrorCode.BAD_MASK
    assert failure.message.startswith("mask ")
    of_the_row = check_row({"video": "a.mp4", "mask": mask, "edits": edits[1:]})
    assert [edit.prompt for edit in of_the_row.video.edits] == ["r"]
    assert of_the_row.failures[0].message.startswith("the row's mask ")


def test_a_mask_changes_the_default_id_of_its_edit_and_an_instruction_does_not() -> None:
    wishes = [{}, {"mask": None}, {"instruction": "make it red"}, {"mask": "m.png"}]
    wishes += [{"mask": "./m.png"}, {"mask": "n.png"}, {"mask": "auto"}]
    ids = [default_id_of({"prompt": "p", **wish}) for wish in wishes]
    assert ids[0] == default_edit_id("p", None, None, None) == "edit-ebe06549"
    assert [ids.index(one) for one in ids] == [0, 0, 0, 3, 3, 5, 6]


@pytest.mark.parametrize(("given", "kept"), [(None, None), ("", None), ("make it", "make it")])
def test_an_instruction_travels_with_its_edit(given: str | None, kept: str | None) -> None:
    (edit,) = check_row(
        {"video": "a", "edits": [{"prompt": "p", "instruction": given}]}
    ).video.edits
    assert edit.instruction == kept
    (failure,) = check_row({"video": "a", "edits": [{"prompt": "p", "instruction": 3}]}).failures
    assert "instruction is 3; expected a string or null" in failure.message
