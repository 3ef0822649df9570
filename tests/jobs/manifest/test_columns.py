"""Which columns of a table are used, and how the text of one is read."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import ConvertError
from jobs.manifest.conversion.columns import ColumnOptions
from jobs.manifest.conversion.formats import Options, convert
from jobs.manifest.conversion.grouping import Converted
from tests.jobs.manifest.conversions import from_table, prompts, refusal, saved


def table(
    folder: Path, header: str, *lines: str, columns: ColumnOptions | None = None, **options: Any
) -> Converted:
    uri = saved(folder, "\n".join([header, *lines]) + "\n", "t.csv")
    return convert([uri], ["table"], Options(columns=columns or ColumnOptions(), **options))


@pytest.mark.parametrize(
    ("header", "note"),
    [
        ("path,instruction", "video from column `path`, prompt from `instruction`"),
        ("url,target_prompt", "video from column `url`, prompt from `target_prompt`"),
        ("File,Edit Prompt", "video from column `File`, prompt from `Edit Prompt`"),
        ("video,text", "video from column `video`, prompt from `text`"),
        ("video_path,prompt", "video from column `video_path`, prompt from `prompt`"),
    ],
)
def test_columns_are_guessed_by_their_names(tmp_path: Path, header: str, note: str) -> None:
    converted = table(tmp_path, header, "a.mp4,one")
    assert converted.rows[0]["video"] == str(tmp_path / "a.mp4")
    assert prompts(converted.rows[0]) == ["one"]
    assert converted.notes == [note]


def test_a_caption_describes_the_source_where_there_is_a_prompt(tmp_path: Path) -> None:
    converted = table(tmp_path, "path,caption,instruction", "a.mp4,a toy,make it red")
    (row,) = converted.rows
    assert (row["source_prompt"], prompts(row)) == ("a toy", ["make it red"])
    assert converted.notes == [
        "video from column `path`, prompt from `instruction`, source prompt from `caption`"
    ]
    (row,) = table(tmp_path, "path,caption", "a.mp4,a toy", prompts=["red", "blue"]).rows
    assert (row["source_prompt"], prompts(row)) == ("a toy", ["red", "blue"])


def test_a_caption_alone_is_the_prompt_and_a_warning_says_so(tmp_path: Path) -> None:
    converted = table(tmp_path, "path,caption", "a.mp4,a toy")
    assert prompts(converted.rows[0]) == ["a toy"]
    (warning,) = converted.warnings
    assert "is taken from 'caption'" in warning
    assert "`--source-prompt-column caption` and --prompt" in warning


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("path,url,prompt", "'path' and 'url' may each be the video; name one: --video-column"),
        ("video,edit_prompt,target_prompt", "may each be the edit prompt; name one: --prompt-col"),
        ("video,prompt,mask_path,mask_uri", "may each be the mask; rename one, or leave it out"),
        ("video,caption,text", "may each be the edit prompt; name one: --prompt-column caption"),
        ("video,source_caption,original_prompt,prompt", "name one: --source-prompt-column"),
        ("clip_id,prompt", "no column 'video'. It has 'clip_id', 'prompt'. If one holds the video"),
        ("vidoe,prompt", "there is no column 'video' (is it 'vidoe'?)"),
        ("video,n", 'give every video the same: --prompt "a watercolour painting"'),
        ("clips/a.mp4,a red cube", "a table needs a header, such as video,prompt"),
    ],
)
def test_what_may_mean_two_things_or_is_missing_is_refused(
    tmp_path: Path, header: str, expected: str
) -> None:
    line = ",".join(f"x{number}" for number in range(len(header.split(","))))
    assert expected in refusal(table, tmp_path, header, line)


def test_a_column_without_a_value_is_no_candidate(tmp_path: Path) -> None:
    header = "video,path,url,prompt,instruction,source_prompt,caption"
    (row,) = table(tmp_path, header, ",a.mp4,,,red,,a toy").rows
    assert (row["video"], prompts(row)) == (str(tmp_path / "a.mp4"), ["red"])
    assert row["source_prompt"] == "a toy"
    assert not [name for name in row if name.startswith("table_")]
    message = refusal(table, tmp_path, "video,prompt", "a.mp4,", ",red")
    assert "line 2: edit" in message and "line 3: video is None" in message
    assert "line 2: edit" in refusal(table, tmp_path, "video,prompt,n", "a.mp4,,1", "b.mp4,,2")


def test_columns_with_the_same_values_are_no_two_things(tmp_path: Path) -> None:
    (row,) = table(tmp_path, "video,caption,text,prompt", "a.mp4,a toy,a toy,red").rows
    assert (row["source_prompt"], row["text"]) == ("a toy", "a toy")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (ColumnOptions(video="pth"), "--video-column 'pth'"),
        (ColumnOptions(video="pth"), "has no such column; did you mean 'path'? It has 'path', "),
        (ColumnOptions(prompts=("PROMPT",)), "did you mean 'prompt'?"),
        (ColumnOptions(source_prompt="zzz"), "has no such column. It has 'path', 'prompt'"),
    ],
)
def test_a_column_that_is_not_there_is_refused_with_the_nearest(
    tmp_path: Path, columns: ColumnOptions, expected: str
) -> None:
    message = refusal(table, tmp_path, "path,prompt", "a.mp4,one", columns=columns)
    assert expected in message


def test_named_columns_go_first_and_the_others_pass_through(tmp_path: Path) -> None:
    columns = ColumnOptions("clip", ("target", "other"), "prompt")
    lines = ("x,a.mp4,a toy,red,blue,007", "y,b.mp4,a hat,green,,")
    first, second = table(
        tmp_path, "video,clip,prompt,target,other,n", *lines, columns=columns
    ).rows
    assert (first["video"], first["source_prompt"]) == (str(tmp_path / "a.mp4"), "a toy")
    assert (prompts(first), prompts(second)) == (["red", "blue"], ["green"])
    assert (first["table_video"], first["n"], second["n"]) == ("x", "007", None)


def test_every_row_gets_the_prompts_of_the_command_line(tmp_path: Path) -> None:
    lines = ("a.mp4,x,1", "b.mp4,y,2", "a.mp4,x,1")
    converted = table(tmp_path, "video,kind,seed", *lines, prompts=["red", "blue"])
    first, second = converted.rows
    assert (prompts(first), prompts(second)) == (["red", "blue"], ["red", "blue"])
    assert (first["seed"], first["edits"][0]["seed"], first["kind"]) == (1, None, "x")
    assert converted.warnings == ["2 repeated edits left out: line 4, prompt 1, line 4, prompt 2"]
    message = refusal(table, tmp_path, "video,prompt", "a.mp4,one", prompts=["red"])
    assert "has edit prompts of its own in the column 'prompt'" in message
    both = ColumnOptions(prompts=("prompt",))
    (row,) = table(tmp_path, "video,prompt", "a.mp4,one", columns=both, prompts=["red"]).rows
    assert prompts(row) == ["one", "red"]
    source = ColumnOptions(source_prompt="prompt")
    (row,) = table(tmp_path, "video,prompt", "a.mp4,one", columns=source, prompts=["red"]).rows
    assert (prompts(row), row["source_prompt"]) == (["red"], "one")


def test_the_name_of_one_edit_does_not_fit_several(tmp_path: Path) -> None:
    message = refusal(table, tmp_path, "video,edit_id", "a.mp4,x", prompts=["red", "blue"])
    assert "line 2: edit_id 'x' is the name of one edit" in message


def test_an_unused_prompt_beside_a_prompt_is_a_warning(tmp_path: Path) -> None:
    converted = table(tmp_path, "video,prompt,edit_prompt", "a.mp4,one,two")
    assert prompts(converted.rows[0]) == ["one"]
    (warning,) = converted.warnings
    assert "'edit_prompt' passes through" in warning and "--prompt-column edit_prompt" in warning


@pytest.mark.parametrize(
    ("header", "line", "prompt", "instruction"),
    [
        ("video,prompt,instruction", "a.mp4,a red cube,paint it", "a red cube", "paint it"),
        ("video,target_prompt,edit_instruction", "a.mp4,red,paint it", "red", "paint it"),
        ("video,instruction", "a.mp4,paint it", "paint it", "paint it"),
        ("video,instructions", 'a.mp4,"[""paint it""]"', "paint it", "paint it"),
        ("video,prompt", "a.mp4,red", "red", None),
    ],
)
def test_an_instruction_stands_beside_the_prompt_or_is_it(
    tmp_path: Path, header: str, line: str, prompt: str, instruction: str | None
) -> None:
    (row,) = table(tmp_path, header, line).rows
    (edit,) = row["edits"]
    assert (edit["prompt"], edit["instruction"]) == (prompt, instruction)
    assert "table_instruction" not in row


def test_masks_lie_beside_the_table_as_videos_do(tmp_path: Path) -> None:
    header = "video,prompt,mask_path"
    lines = ["a.mp4,red,masks/a.png", "a.mp4,blue,s3://b/a.png", "a.mp4,green,auto", "a.mp4,x,"]
    converted = table(tmp_path, header, *lines)
    (row,) = converted.rows
    found = [edit["mask"] for edit in row["edits"]]
    assert found == [f"{tmp_path}/masks/a.png", "s3://b/a.png", "auto", None]
    assert converted.notes == [
        "video from column `video`, prompt from `prompt`, mask from `mask_path`"
    ]
    assert len({edit["edit_id"] for edit in row["edits"]}) == 4


def test_masks_and_instructions_of_several_edits_are_one_or_one_for_each(tmp_path: Path) -> None:
    edits = '"[""red"", ""blue""]"'
    header = "video,edits,masks,instruction"
    (row,) = table(tmp_path, header, f'a.mp4,{edits},"[""a.png"", ""none""]",paint it').rows
    assert [edit["mask"] for edit in row["edits"]] == [f"{tmp_path}/a.png", "none"]
    assert [edit["instruction"] for edit in row["edits"]] == ["paint it"] * 2
    message = refusal(table, tmp_path, header, f'a.mp4,{edits},"[""a.png""]",paint it')
    assert "line 2: 1 masks beside 2 edits; expected one, or one for each" in message


def test_masks_that_are_no_files_pass_through(tmp_path: Path) -> None:
    uri = saved(tmp_path, [{"video": "a.mp4", "prompt": "red", "mask": {"counts": [1]}}])
    (row,) = from_table(uri).rows
    assert (row["edits"][0]["mask"], row["table_mask"]) == (None, {"counts": [1]})


def test_ids_that_look_like_numbers_keep_their_zeros(tmp_path: Path) -> None:
    converted = table(tmp_path, "video,video_id,edit_id,prompt,n", "a.mp4,007,01,one,0010")
    assert converted.notes == ["used as in a manifest: `video_id`, `edit_id`"]
    (row,) = converted.rows
    assert (row["video_id"], row["edits"][0]["edit_id"], row["n"]) == ("007", "01", "0010")
    uri = saved(tmp_path, [{"video": "a.mp4", "video_id": 7, "prompt": "one"}])
    assert from_table(uri).rows[0]["video_id"] == "7"


TEXT = 'video;prompt\na.mp4;"one, ü\nand two"\n'


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        gzip.compress(TEXT.encode(), mtime=0),
        f"sep=;\n{TEXT}".encode(),
        TEXT.replace(";", "\t").encode(),
        TEXT.replace("video;prompt", '"video";"prompt"').encode(),
    ],
)
def test_text_is_read_in_the_forms_that_programs_write(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    (row,) = from_table(str(tmp_path / "t.csv")).rows
    assert prompts(row) == ["one, ü\nand two"]


def test_the_way_out_of_latin_1_is_given(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("video,prompt\na.mp4,ü\n".encode("latin-1"))
    message = refusal(from_table, str(tmp_path / "t.csv"))
    assert "t.csv is not UTF-8 text: line 2 has the byte 0xfc" in message
    assert "iconv -f latin1 -t utf-8 t.csv > utf8-t.csv" in message


@pytest.mark.parametrize(
    "content",
    [
        [{"path": "a.mp4", "prompt": "one"}],
        {"version": 1, "data": [{"path": "a.mp4", "prompt": "one"}]},
        {"a.mp4": {"prompt": "one"}},
        {"path": "a.mp4", "prompt": "one"},
    ],
)
def test_json_has_its_records_in_the_usual_places(tmp_path: Path, content: Any) -> None:
    (row,) = from_table(saved(tmp_path, content)).rows
    assert (row["video"], prompts(row)) == (str(tmp_path / "a.mp4"), ["one"])


def test_a_refusal_says_how_to_take_the_rest(tmp_path: Path) -> None:
    message = refusal(table, tmp_path, "video,prompt", "a.mp4,one", "a.mp4,one")
    assert "line 3: the edit" in message and "--skip-bad leaves these out" in message
    assert "has no rows" in refusal(table, tmp_path, "video,prompt")


def test_a_list_of_prompts_in_a_cell_is_several_edits(tmp_path: Path) -> None:
    (row,) = table(tmp_path, "video,edits", '''a.mp4,"[""one"", ""two""]"''').rows
    assert prompts(row) == ["one", "two"]
    uri = saved(tmp_path, [{"path": "a.mp4", "prompts": ["one", "two"]}])
    assert prompts(from_table(uri).rows[0]) == ["one", "two"]


def test_a_column_without_a_name_is_no_source_prompt(tmp_path: Path) -> None:
    converted = table(tmp_path, ",video,prompt", "0,a.mp4,red", "1,b.mp4,blue")  # as pandas writes
    assert [row["source_prompt"] for row in converted.rows] == [None, None]
    assert [row["column_1"] for row in converted.rows] == ["0", "1"]
    (row,) = table(tmp_path, "video,prompt,,", "a.mp4,red,,").rows
    assert not {"", "column_3", "column_4"} & row.keys()


def test_empty_lines_before_the_header_are_passed_over(tmp_path: Path) -> None:
    assert prompts(table(tmp_path, "\n\nvideo,prompt", "a.mp4,red").rows[0]) == ["red"]
    with pytest.raises(ConvertError, match="line 5"):
        table(tmp_path, "\n\nvideo,prompt", "a.mp4,red", "b.mp4,")


def test_values_that_python_cannot_hold_pass_through_as_text(tmp_path: Path) -> None:
    day = pa.array([253_402_300_800], pa.timestamp("s"))
    columns = {"video": ["a.mp4"], "prompt": ["red"], "until": day}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    (row,) = convert([str(tmp_path / "t.parquet")], ["table"], Options()).rows
    assert row["until"] == "10000-01-01 00:00:00.000"


@pytest.mark.parametrize("name", ["edits", "prompts", "prompt"])
@pytest.mark.parametrize("cell", ['"[""red"", ""a \'b\'""]"', '"[\'red\', ""a \'b\'""]"'])
def test_a_list_of_prompts_may_be_a_text_of_json_or_of_pandas(
    tmp_path: Path, name: str, cell: str
) -> None:
    (row,) = table(tmp_path, f"video,{name}", f"a.mp4,{cell}").rows
    assert prompts(row) == ["red", "a 'b'"]


def test_a_prompt_may_begin_with_a_bracket_but_be_no_array(tmp_path: Path) -> None:
    (row,) = table(tmp_path, "video,prompt", "a.mp4,[film grain] a red [4k]").rows
    assert prompts(row) == ["[film grain] a red [4k]"]
    with pytest.raises(ConvertError, match="line 2: .* is the text of an array"):
        table(tmp_path, "video,prompts", "a.mp4,['red' 'blue']")


def test_json_may_lead_from_a_video_to_its_prompts(tmp_path: Path) -> None:
    uri = saved(tmp_path, '{"a.mp4": "red", "b.mp4": ["red", {"prompt": "blue"}]}', "t.json")
    rows = convert([uri], ["table"], Options()).rows
    assert [prompts(row) for row in rows] == [["red"], ["red", "blue"]]
