"""`retake verify` reads all that an output folder holds and marks what must be made again."""

import io
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cluster.output.verify import verify
from cluster.results.compaction import compact
from cluster.results.parts import part_names
from jobs.cli import app
from pipeline.media.encoding import write_clip
from pipeline.storage import Folder
from pipeline.trajectories.checking import check_trajectory
from pipeline.trajectories.index import TrajectoryDamaged
from tests.cluster.test_results import a_result, store
from tests.pending_rows import done_edits
from tests.pipeline.trajectories.test_trajectory import entries, flip
from tests.pipeline.trajectories.test_trajectory import store as store_trajectory


def a_clip(frames: int = 9) -> bytes:
    buffer = io.BytesIO()
    write_clip(buffer, torch.randint(256, (frames, 32, 48, 3), dtype=torch.uint8), fps=8)
    return buffer.getvalue()


@pytest.fixture
def output(tmp_path: Path) -> Folder:
    """An output folder with three edits of 9 frames and a trajectory."""
    folder, clip, rows = Folder(str(tmp_path / "out")), a_clip(), []
    for edit in "abc":
        name = f"edits/v/{edit}.mp4"
        folder.write(name, clip)
        size = {"frames": 9, "height": 32, "width": 48, "size_bytes": len(clip)}
        rows.append(a_result("v", edit, output=name, run="r1", **size))
    store(folder, "r1", *rows)
    store_trajectory(folder.child("trajectories/k"), entries())
    return folder


def verified(output: Folder, *options: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["verify", output.uri, *options])
    assert not done.exception or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, done.output


@pytest.mark.parametrize("decode", [False, True])
def test_a_whole_output_folder_has_nothing_wrong(output: Folder, decode: bool) -> None:
    found = verify(output, decode=decode)
    assert (found.edits, found.trajectories, found.problems) == (3, 1, 0)
    assert found.bytes > 5 * 2 * 4 * 6 * 10 * 4
    status, text = verified(output, *["--decode"] * decode)
    assert status == 0
    assert "nothing is wrong" in text


def test_edits_are_decoded_while_a_run_puts_its_results_together(
    output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.output.verify.AT_ONCE", 1)
    found = verify(output, decode=True, on_progress=lambda text: compact_once(output, text))
    assert (found.edits, found.problems) == (4, 0)
    assert part_names(output) == ["results/r9-compact-000000.parquet"]


def compact_once(output: Folder, text: str) -> None:
    """As a run does after the first list of the results was read."""
    if text == "listing the edits":
        output.write("edits/w/a.mp4", a_clip())
        size = {"frames": 9, "height": 32, "width": 48}
        store(output, "r2", a_result("w", "a", output="edits/w/a.mp4", run="r2", **size))
    if text == "1 edits decoded":
        compact(output, "r9")


def test_what_is_lost_is_marked_and_pending_again(output: Folder) -> None:
    output.remove("edits/v/a.mp4")
    status, text = verified(output, "--dry-run")
    assert status == 3
    assert "edits/v/a.mp4 is gone" in text
    assert ("v", "a", "f") in done_edits(output)
    status, text = verified(output)
    assert status == 3
    assert "1 edit marked as `edit_lost`: made again by the next run" in " ".join(text.split())
    assert [("v", edit, "f") in done_edits(output) for edit in "abc"] == [0, 1, 1]
    assert verified(output)[0] == 0


def test_an_edit_of_the_same_size_that_cannot_be_decoded_is_found(output: Folder) -> None:
    data = output.read("edits/v/a.mp4")
    output.write("edits/v/a.mp4", data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    output.write("edits/v/b.mp4", b"x" * len(data))
    assert verify(output).problems == 0
    assert [one.output for one in verify(output, decode=True).lost] == [
        "edits/v/a.mp4",
        "edits/v/b.mp4",
    ]


def test_an_altered_trajectory_is_named(output: Folder, tmp_path: Path) -> None:
    folder = output.child("trajectories/k")
    assert check_trajectory(output.child("trajectories/none"), "none") is None
    flip(-1)(tmp_path / "out/trajectories/k")
    with pytest.raises(TrajectoryDamaged, match="chunk .* is altered"):
        check_trajectory(folder, "k")
    status, text = verified(output)
    assert status == 3
    assert "is altered" in text
    assert "A damaged trajectory is made again when an edit next needs it" in text


def test_damaged_results_are_set_aside_and_their_edits_pending(output: Folder) -> None:
    store(output, "r2", a_result("w", "a"))
    data = output.read("results/r2-000000.parquet")
    output.write("results/r2-000000.parquet", data[:-20])
    status, text = verified(output)
    assert status == 3
    assert "results/r2-000000.parquet: cannot be read" in " ".join(text.split())
    assert part_names(output) == ["results/r1-000000.parquet"]
    (aside,) = output.list("results/.damaged")
    assert output.read(aside) == data[:-20]
    assert verified(output)[0] == 0


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    status, text = verified(Folder(str(tmp_path)))
    assert status == 1
    assert "no rows in results/*.parquet" in text


def test_a_mask_that_cannot_be_decoded_is_found(output: Folder) -> None:
    clip = a_clip()
    output.write("edits/v/d.mp4", clip)
    output.write("masks/v/d.mp4", clip[: len(clip) // 2])
    size = {"frames": 9, "height": 32, "width": 48, "size_bytes": len(clip)}
    row = a_result("v", "d", output="edits/v/d.mp4", mask="masks/v/d.mp4", run="r2", **size)
    store(output, "r2", row)
    assert verify(output).lost == []
    (lost,) = verify(output, decode=True).lost
    assert lost.output == "edits/v/d.mp4"
    assert lost.why.startswith("has lost its mask: masks/v/d.mp4 cannot be decoded: ")
