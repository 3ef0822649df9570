"""The converters of `retake manifest`, on made-up samples of each format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.rows import check_row, default_edit_id, default_video_id, id_problem
from jobs.manifest.checks import check_manifest
from jobs.manifest.conversion.formats import Options
from jobs.manifest.conversion.kinds import guess_format, guess_kind
from jobs.manifest.make import make_manifest
from jobs.manifest.schema import SCHEMA
from jobs.manifest.writing import write_manifest
from tests.jobs.manifest.conversions import (
    converter,
    from_balancecc,
    from_five,
    from_folder,
    from_ivebench,
    from_table,
    from_tgve,
    prompts,
    put,
    refusal,
    saved,
)

TGVE = """Video name,Our GT caption,Style Change Caption,Object Change Caption,\
Background Change Caption,Multiple Changes Caption
DAVIS Videos:,,,,,
tin-toy,A tin toy rolls.,"A tin toy rolls, sketched.",A wooden toy rolls.,A toy on sand.,All of it.
,,,,,
Videvo Videos:,,,,,
paper-boat,A paper boat floats.,Inked boat.,A leaf floats.,A boat in milk.,All of it.
"""
BALANCECC = [
    {
        "Video Name": "tin-toy",
        "Video Type": "Object",
        "Original Prompt": "A tin toy rolls.",
        "Camera Motion": 1,
        "Editing": [
            {"Editing Type": "Style Change", "Target Prompt": "A sketch.", "Fantasy Level": 1},
            {"Editing Type": "Object Change", "Target Prompt": "A wooden.", "Fantasy Level": 2},
            {"Editing Type": "Object Change", "Target Prompt": "A glass.", "Fantasy Level": 3},
        ],
    }
]
FIVE = [
    {
        "video_name": "0001_toy",
        "source_prompt": "A [tin] toy rolls.",
        "target_prompt": "A [glass] toy rolls.",
        "save_dir": "1_glass",
        "editing_type_id": 1,
    },
    {
        "video_name": "0001_toy",
        "source_prompt": "A tin [toy] rolls.",
        "target_prompt": "A tin [hoop] rolls.",
        "save_dir": "1_hoop",
        "editing_type_id": 2,
    },
    {
        "video_name": "0001_toy",
        "source_prompt": "A toy on a table.",
        "target_prompt": "A toy on sand.",
        "save_dir": "1_sand",
        "editing_type_id": 3,
    },
]
IVEBENCH = [
    {
        "id": 0,
        "src_video_name": "toy_0001.mp4",
        "category": "style_editing",
        "fps": 24,
        "subcategory": "pencil/sketch",
        "source_prompt": "A tin toy rolls.",
        "edit_prompt": "Make it a sketch.",
        "target_prompt": "A sketch of a tin toy that rolls.",
        "target_phrase": "sketch",
        "target_span": [2, 8],
    }
]


def lines(*records: dict[str, Any]) -> str:
    return "\n".join(map(json.dumps, records))


def test_a_folder_gives_every_video_every_prompt(tmp_path: Path) -> None:
    names = ("a/clip.mp4", "b/clip.MOV", "top.webm", "notes.txt", ".hidden.mp4", "a/._clip.mp4")
    put(tmp_path, *names)
    rows = from_folder(str(tmp_path), ["a red cube", "a blue cube"]).rows
    expected = ["a/clip.mp4", "b/clip.MOV", "top.webm"]
    assert [row["video"] for row in rows] == [str(tmp_path / name) for name in expected]
    # the ids do not change when the folder is moved
    assert [row["video_id"] for row in rows] == [default_video_id(name) for name in expected]
    assert all(prompts(row) == ["a red cube", "a blue cube"] for row in rows)
    assert len(from_folder(str(tmp_path), ["p"], "*").rows) == 1
    assert len(from_folder(str(tmp_path), ["p"], "a/*.mp4").rows) == 1


def test_a_folder_without_videos_or_prompts_is_refused(tmp_path: Path) -> None:
    assert "no video file" in refusal(from_folder, str(tmp_path), ["p"])
    put(tmp_path, "a.mp4")
    assert "no prompts" in refusal(from_folder, str(tmp_path), [])
    assert "a.mp4, prompt 2" in refusal(from_folder, str(tmp_path), ["p", " "])
    assert "already at a.mp4, prompt 1" in refusal(from_folder, str(tmp_path), ["p", "p"])


def test_csv_lines_with_the_same_video_become_one_row(tmp_path: Path) -> None:
    text = (
        "video,prompt,edit_id,guidance_scale,seed,num_frames,license\n"
        "a.mp4,a red cube,red,4,1,9,CC0\n"
        "b.mp4,a ball,,,,,CC-BY\n"
        'a.mp4,"a blue cube, small",blue,,2,9,CC0\n'
    )
    first, second = from_table(saved(tmp_path, text, "t.csv")).rows
    assert first["video"] == str(tmp_path / "a.mp4")
    assert first["video_id"] == default_video_id("a.mp4")
    assert prompts(first) == ["a red cube", "a blue cube, small"]
    assert [edit["edit_id"] for edit in first["edits"]] == ["red", "blue"]
    assert [edit["guidance_scale"] for edit in first["edits"]] == [4.0, None]
    assert [edit["seed"] for edit in first["edits"]] == [1, 2]
    assert (first["num_frames"], first["seed"], first["license"]) == (9, None, "CC0")
    assert second["edits"][0]["edit_id"] == default_edit_id("a ball", None, None, None)
    assert (second["num_frames"], second["license"]) == (None, "CC-BY")


def test_a_column_that_differs_between_edits_becomes_a_list(tmp_path: Path) -> None:
    text = "video,prompt,kind\na.mp4,one,style\na.mp4,two,object\nb.mp4,one,style\n"
    rows = from_table(saved(tmp_path, text)).rows
    assert [row["kind"] for row in rows] == [["style", "object"], ["style"]]


def test_one_video_with_two_start_frames_is_two_rows(tmp_path: Path) -> None:
    text = "video,prompt,start_frame\na.mp4,one,0\na.mp4,two,0\na.mp4,one,8\n"
    rows = from_table(saved(tmp_path, text)).rows
    assert [(row["start_frame"], len(row["edits"])) for row in rows] == [(0, 2), (8, 1)]
    name = default_video_id("a.mp4")
    assert [row["video_id"] for row in rows] == [name, f"{name}-2"]


RECORDS: list[dict[str, Any]] = [
    {"video": "a.mp4", "edits": ["one", "two"], "seed": 5, "guidance_scale": 3},
    {
        "video": "s3://bucket/b.mp4",
        "video_id": "ball",
        "source_prompt": "a ball",
        "edits": [{"prompt": "one", "edit_id": "x", "guidance_scale": 2, "kind": "style"}],
    },
    {"video": "c.mp4", "prompt": "one", "seed": 6},
]


@pytest.mark.parametrize("content", [json.dumps(RECORDS, indent=1), lines(*RECORDS)])
def test_json_and_jsonl_hold_edits_as_prompts_or_objects(tmp_path: Path, content: str) -> None:
    first, second, third = from_table(saved(tmp_path, content)).rows
    assert prompts(first) == ["one", "two"]
    assert (first["seed"], first["edits"][0]["seed"]) == (5, None)
    assert [edit["guidance_scale"] for edit in first["edits"]] == [3.0, 3.0]
    assert (second["video"], second["video_id"]) == ("s3://bucket/b.mp4", "ball")
    assert second["source_prompt"] == "a ball"
    assert (second["edits"][0]["edit_id"], second["edits"][0]["guidance_scale"]) == ("x", 2.0)
    # the first video's two edits do not differ, so one value a video is enough
    assert [row["kind"] for row in (first, second, third)] == [None, "style", None]
    assert (third["seed"], third["edits"][0]["seed"]) == (None, 6)


def test_every_bad_line_is_reported_with_its_number(tmp_path: Path) -> None:
    text = (
        "video,video_id,prompt,edit_id,fps\n"
        "a.mp4,,fine,,8\n"
        "a.mp4,,,,8\n"
        ",,one,,8\n"
        "a.mp4,,one,x/y,8\n"
        "a.mp4,,one,,fast\n"
        "a.mp4,../up,one,,8\n"
        "s4://b/a.mp4,,one,,8\n"
        "a.mp4,,fine,,8\n"
        "a.mp4,,one,,8,extra\n"
        "b.mp4,same,one,,8\n"
        "c.mp4,same,one,,8\n"
    )
    uri = saved(tmp_path, text)
    message = refusal(from_table, uri)
    assert uri in message
    for expected in (
        "line 3: edit",
        "line 4: video is None",
        "line 5: edit_id",
        "line 6: fps is 'fast'",
        "line 7: video_id",
        "line 8: video 's4://b/a.mp4' has the unknown protocol",
        "line 9: the edit",
        "line 10: 1 more cells",
        "line 12: video_id 'same' is already that of line 11",
    ):
        assert expected in message
    converted = from_table(uri, skip_bad=True)
    assert [len(row["edits"]) for row in converted.rows] == [1, 1]
    assert len(converted.warnings) == 9


def test_bad_json_entries_are_reported_with_their_number(tmp_path: Path) -> None:
    records: list[Any] = [
        {"video": "a.mp4", "prompt": "fine"},
        7,
        {"vidoe": "a.mp4", "prompt": "one"},
        {"video": "a.mp4", "edits": []},
        {"video": "a.mp4", "edits": ["one"], "prompt": "one"},
        {"video": "a.mp4", "edits": ["good", 5, "", {"prompt": "one", "fps": 8}]},
        {"video": 5, "prompt": "one"},
        {"video": "a.mp4"},
    ]
    message = refusal(from_table, saved(tmp_path, records))
    for expected in (
        "entry 2: 7",
        "entry 3: there is no 'video' (is it 'vidoe'?)",
        "entry 4: expected",
        "entry 5: expected",
        "entry 6, edit 2: 5",
        "entry 6, edit 3: edit",
        "entry 6, edit 4: 'fps' belongs to the video",
        "entry 7: video is 5",
        "entry 8: edit",
    ):
        assert expected in message
    jsonl = saved(tmp_path, lines(records[0]) + "\n{broken\n\n" + lines(records[0]), "s.jsonl")
    assert "line 2: not valid JSON" in refusal(from_table, jsonl)


def test_no_more_than_twenty_problems_are_listed(tmp_path: Path) -> None:
    message = refusal(from_table, saved(tmp_path, [{"video": "a.mp4", "prompt": " "}] * 50))
    assert message.count("\n") == 21 and "and 30 more" in message


def test_a_source_without_one_good_entry_is_refused_even_when_skipping(tmp_path: Path) -> None:
    uri = saved(tmp_path, [{"video": "a.mp4", "prompt": " "}])
    assert "entry 1" in refusal(from_table, uri, skip_bad=True)
    assert "has no rows" in refusal(from_table, saved(tmp_path, []))


def test_a_column_that_looks_misspelt_is_a_warning(tmp_path: Path) -> None:
    converted = from_table(saved(tmp_path, "video,prompt,guidence_scale\na.mp4,one,4\n"))
    assert converted.rows[0]["guidence_scale"] == "4"
    assert any("'guidance_scale' is a known name" in text for text in converted.warnings)


def test_tgve_skips_the_section_headers_and_names_the_edits(tmp_path: Path) -> None:
    videos = tmp_path / "DAVIS_480p" / "480p_videos"
    videos.mkdir(parents=True)
    (videos / "tin-toy.webm").touch()
    (videos / "tin-toy.mp4").touch()
    converted = from_tgve(saved(tmp_path, TGVE, "t.csv"), videos=str(tmp_path))
    first, second = converted.rows
    assert first["video"] == str(videos / "tin-toy.mp4")
    assert first["video_id"] == "tin-toy"
    assert first["source_prompt"] == "A tin toy rolls."
    kinds = ["style", "object", "background", "multiple"]
    assert [edit["edit_id"] for edit in first["edits"]] == kinds
    assert prompts(first)[0] == "A tin toy rolls, sketched."
    assert second["video"] == str(tmp_path / "paper-boat.mp4")
    assert converted.absent == {"paper-boat": str(tmp_path / "paper-boat.mp4")}


def test_a_tgve_line_without_a_caption_costs_that_edit(tmp_path: Path) -> None:
    uri = saved(tmp_path, TGVE.replace("Inked boat.", " "))
    assert "line 6, style" in refusal(from_tgve, uri)
    second = from_tgve(uri, skip_bad=True).rows[1]
    assert [edit["edit_id"] for edit in second["edits"]] == ["object", "background", "multiple"]
    nameless = saved(tmp_path, TGVE.replace("paper-boat", ""))
    assert "line 6, style: video is" in refusal(from_tgve, nameless)


def test_balancecc_numbers_the_edits_of_one_kind(tmp_path: Path) -> None:
    (row,) = from_balancecc(saved(tmp_path, BALANCECC)).rows
    assert row["video"] == str(tmp_path / "tin-toy.mp4")
    assert row["video_id"] == "tin-toy"
    assert [edit["edit_id"] for edit in row["edits"]] == ["style", "object", "object-2"]
    assert prompts(row) == ["A sketch.", "A wooden.", "A glass."]
    assert (row["Video Type"], row["Camera Motion"]) == ("Object", 1)
    assert row["Fantasy Level"] == [1, 2, 3]
    assert "Target Prompt" not in row
    broken = [{**BALANCECC[0], "Editing": "none"}]
    assert "entry 1: 'Editing'" in refusal(from_balancecc, saved(tmp_path, broken))


def test_five_pairs_of_one_source_prompt_are_one_row_without_marks(tmp_path: Path) -> None:
    first, second = from_five(saved(tmp_path, FIVE)).rows
    assert first["source_prompt"] == "A tin toy rolls."
    assert prompts(first) == ["A glass toy rolls.", "A tin hoop rolls."]
    assert [edit["edit_id"] for edit in first["edits"]] == ["1_glass", "1_hoop"]
    assert first["editing_type_id"] == [1, 2]
    assert (first["video_id"], second["video_id"]) == ("0001_toy", "0001_toy-2")
    assert first["video"] == str(tmp_path / "0001_toy.mp4")


def test_a_glob_reads_the_files_of_five_as_one(tmp_path: Path) -> None:
    saved(tmp_path, FIVE[:1], "edit1_FiVE.json")
    saved(tmp_path, FIVE[1:2], "edit2_FiVE.json")
    (row,) = from_five(str(tmp_path / "edit?_FiVE.json")).rows
    assert len(row["edits"]) == 2
    saved(tmp_path, [{**FIVE[0], "target_prompt": " "}], "edit3_FiVE.json")
    assert "edit3_FiVE.json, entry 1" in refusal(from_five, str(tmp_path / "edit?_FiVE.json"))


def test_ivebench_edits_by_the_description_of_the_result(tmp_path: Path) -> None:
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "toy_0001.mp4").touch()
    converted = from_ivebench(saved(tmp_path, IVEBENCH), videos=str(tmp_path))
    (row,) = converted.rows
    assert row["video"] == str(tmp_path / "short" / "toy_0001.mp4")
    assert row["video_id"] == "toy_0001"
    assert prompts(row) == ["A sketch of a tin toy that rolls."]
    assert row["edits"][0]["edit_id"].startswith("pencil-sketch-")
    assert row["edit_prompt"] == row["edits"][0]["instruction"] == "Make it a sketch."
    assert (row["target_phrase"], row["target_span"]) == ("sketch", [2, 8])
    assert (row["fps"], row["published_fps"]) == (None, 24)
    assert converted.warnings == []


def test_files_of_a_pattern_are_recognised_by_the_first(tmp_path: Path) -> None:
    for number in (1, 2):
        saved(tmp_path, "video,prompt\na.mp4,one\n", f"part{number}.csv")
    target = str(tmp_path / "m.parquet")
    put(tmp_path, "a.mp4")
    made = make_manifest([str(tmp_path / "part?.csv")], target, Options(skip_bad=True))
    assert check_manifest(target).edits == made.edits == 1


SAMPLES: dict[str, Any] = {
    "table": "video,prompt\na.mp4,one\n",
    "tgve": TGVE,
    "balancecc": BALANCECC,
    "five": FIVE,
    "ivebench": IVEBENCH,
}


@pytest.mark.parametrize("name", SAMPLES)
def test_each_format_is_recognised_and_becomes_a_good_manifest(tmp_path: Path, name: str) -> None:
    uri = saved(tmp_path, SAMPLES[name])
    assert guess_kind(uri) == name
    converted = converter(name)(uri)
    target = str(tmp_path / "out" / "m.parquet")
    write_manifest(converted.rows, target)
    info = check_manifest(target)
    assert info.edits == sum(len(row["edits"]) for row in converted.rows)
    assert info.columns[: len(SCHEMA)] == tuple(SCHEMA.names)
    for row in pq.read_table(target).to_pylist():
        checked = check_row(row)
        assert not checked.failures
        assert id_problem(row["video_id"]) is None
        assert len(checked.video.edits) == len(row["edits"])


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("clip.rm", b"\x00\x00\x00 ftypisom", "is not text, and its name has no ending of a video"),
        ("empty.csv", b" \n", "empty.csv is an empty file"),
        ("prompts.xlsx", b"PK\x03\x04", "spreadsheet; save it as CSV"),
        ("clips.zip", b"PK\x03\x04", "unpack it"),
    ],
)
def test_what_no_converter_reads_is_refused_with_the_reason(
    name: str, head: bytes, expected: str
) -> None:
    assert expected in refusal(guess_format, name, head)
