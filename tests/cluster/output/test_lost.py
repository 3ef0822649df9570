"""An edit whose file is gone, empty or another one is found by a listing and made again."""

from pathlib import Path

import pyarrow as pa
import pytest

from cluster.output import lost
from cluster.output.lost import Lost, before_a_run, find_lost, mark
from cluster.results.compaction import compact, current_rows
from cluster.results.schema import to_parquet
from pipeline.storage import Folder
from tests.cluster.test_results import OLDER, a_result, store
from tests.pending_rows import done_edits


def an_edit(output: Folder, video: str, edit: str, size: int = 5, **values: object) -> dict:
    """The row of an edit whose file is there."""
    name = f"edits/{video}/{edit}.mp4"
    output.write(name, b"x" * size)
    return a_result(video, edit, run="r1", output=name, size_bytes=size, **values)


def an_output(where: str) -> Folder:
    """An output folder with five edits, of which three are not what their rows say."""
    output = Folder(where)
    rows = [an_edit(output, "v", edit) for edit in "abcd"]
    store(output, "r1", *rows, an_edit(output, "w", "a"), a_result("w", "b", "failed"))
    output.remove("edits/v/b.mp4")
    output.write("edits/v/c.mp4", b"")
    output.write("edits/w/a.mp4", b"xxxx")
    return output


@pytest.mark.parametrize("where", ["local", "memory"])
def test_files_that_are_gone_empty_or_of_another_size_are_found(tmp_path: Path, where: str) -> None:
    output = an_output(f"memory://{tmp_path}" if where == "memory" else str(tmp_path))
    assert find_lost(output) == [
        Lost("edits/v/b.mp4", "is gone"),
        Lost("edits/v/c.mp4", "is empty"),
        Lost("edits/w/a.mp4", "has 4 bytes, and 5 were written"),
    ]


def test_lost_edits_are_pending_again_and_all_others_stay_done(tmp_path: Path) -> None:
    output, notes = an_output(str(tmp_path)), list[str]()
    before_a_run(output, "r2", notes.append)
    assert [("v", edit, "f") in done_edits(output) for edit in "abcd"] == [1, 0, 0, 1]
    assert ("w", "a", "f") not in done_edits(output)
    (note,) = notes
    assert note.startswith(
        "3 edits that the results call done will be made again: edits/v/b.mp4 is"
    )
    compact(output, "r2")
    marked = [row for row in current_rows(output) if row["error_code"] == "edit_lost"]
    assert {(row["video_id"], row["edit_id"]) for row in marked} == {
        ("v", "b"),
        ("v", "c"),
        ("w", "a"),
    }
    first = min(marked, key=lambda row: row["edit_id"] + row["video_id"])
    assert (first["status"], first["run"], first["output"]) == ("failed", "r1", None)
    assert first["error"].endswith("edits/w/a.mp4: has 4 bytes, and 5 were written")
    before_a_run(output, "r3", notes.append)
    assert len(notes) == 1, "they are marked once"


def test_an_edit_that_was_made_again_counts_though_its_node_has_an_earlier_clock(
    tmp_path: Path,
) -> None:
    output = an_output(str(tmp_path))
    mark(output, "r2", find_lost(output))
    again = an_edit(output, "v", "b") | {"finished_at": a_result("", "", minute=1)["finished_at"]}
    store(output, "r2", again)
    assert ("v", "b", "f") in done_edits(output)


def test_rows_without_a_size_are_lost_only_where_the_file_is_gone_or_empty(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    rows = pa.Table.from_pylist([an_edit(output, "v", edit) for edit in "ab"], schema=OLDER)
    output.write("results/r1-000000.parquet", to_parquet(rows.drop_columns(["size_bytes"])))
    output.write("edits/v/a.mp4", b"another")
    assert find_lost(output) == []
    output.remove("edits/v/b.mp4")
    assert [one.output for one in find_lost(output)] == ["edits/v/b.mp4"]


def test_only_the_newest_row_of_an_edit_says_whether_it_should_be_there(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    store(output, "r1", an_edit(output, "v", "a") | {"size_bytes": 4}, an_edit(output, "v", "b"))
    newer = [an_edit(output, "v", "a", minute=1), a_result("v", "b", "failed", 1)]
    store(output, "r2", *(row | {"run": "r2"} for row in newer))
    output.remove("edits/v/b.mp4")
    assert find_lost(output) == []


def test_a_run_does_not_list_the_files_of_very_many_edits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost, "LOCAL_ROWS", 5)
    output, notes = an_output(str(tmp_path)), list[str]()
    before_a_run(output, "r2", notes.append)
    assert not notes
    assert len(find_lost(output)) == 3


def test_an_output_folder_without_anything_has_nothing_lost(tmp_path: Path) -> None:
    output = Folder(str(tmp_path / "new"))
    before_a_run(output, "r1", pytest.fail)
    assert find_lost(output) == []
    assert list(Folder("memory://nothing").sizes("edits")) == []


@pytest.mark.parametrize("folder", ["masks", "candidates"])
def test_an_edit_is_lost_whose_mask_is_gone_wherever_it_lies(tmp_path: Path, folder: str) -> None:
    output, rows = Folder(str(tmp_path)), []
    for edit in "abc":
        row = an_edit(output, "v", edit)
        row["mask"] = f"masks/v/{edit}.mp4"
        if folder == "candidates":
            row["output"], row["mask"] = (
                f"candidates/v/{edit}/1{end}.mp4" for end in ("", ".mask")
            )
            output.write(row["output"], b"x" * 5)
        output.write(row["mask"], b"y")
        rows.append(row)
    store(output, "r1", *rows, an_edit(output, "v", "d"))
    assert find_lost(output) == []
    output.remove(rows[0]["mask"])
    output.write(rows[1]["mask"], b"")
    assert find_lost(output) == [
        Lost(rows[0]["output"], f"has lost its mask: {rows[0]['mask']} is gone"),
        Lost(rows[1]["output"], f"has lost its mask: {rows[1]['mask']} is empty"),
    ]
    before_a_run(output, "r2", lambda note: None)
    assert [("v", edit, "f") in done_edits(output) for edit in "abcd"] == [0, 0, 1, 1]
