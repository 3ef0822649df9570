"""Masks and instructions through a whole job: from the manifest to the result row."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from jobs.cli import EXIT_DONE, EXIT_SOME_FAILED, app
from jobs.manifest.writing import write_manifest
from pipeline.media.decoding import read_clip
from pipeline.media.encoding import write_clip
from pipeline.records import EditResult
from tests.in_process import run_in_process
from tests.jobs.test_run import SMALL, a_video, results

FRAMES, SIDE = 5, 32


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    run_in_process(monkeypatch)


def a_mask(path: Path, columns: int, frames: int = FRAMES) -> str:
    """A mask whose first columns are white, of a video of 32x32."""
    pixels = torch.zeros(frames, SIDE, SIDE, 3, dtype=torch.uint8)
    pixels[:, :, :columns] = 255
    with path.open("wb") as file:
        write_clip(file, pixels, fps=8)
    return path.name


def run(folder: Path, rows: list[dict[str, Any]], **reconstruction: Any) -> int:
    write_manifest(rows, f"{folder}/m.parquet")
    how = {**SMALL["reconstruction"], **reconstruction}
    values = {**SMALL, "reconstruction": how, "manifest": "m.parquet", "output": "out"}
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    return app(["run", str(folder / "job.yaml")], standalone_mode=False)


def clip(folder: Path, name: str) -> Tensor:
    """Frames of a file of the output, uint8 [F, H, W, 3]."""
    with (folder / "out" / name).open("rb") as file:
        frames = read_clip(file, name=name, height=SIDE, width=SIDE, frames=FRAMES).frames
    return torch.as_tensor(np.asarray(frames))


def is_white(folder: Path, row: dict[str, Any]) -> Tensor:
    """Where the stored mask of an edit lets it change its source, bool [F, H, W]."""
    return clip(folder, row["mask"])[..., 0] >= 128


def the_row(folder: Path, **edits: str | None) -> dict[str, Any]:
    """A video with an edit for each name, with these masks."""
    a_video(folder / "a.mp4", height=SIDE, width=SIDE)
    made = [
        {"edit_id": name, "prompt": "a red cube", "mask": mask, "instruction": f"make it {name}"}
        for name, mask in edits.items()
    ]
    return {"video": "a.mp4", "video_id": "a", "edits": made}


def test_each_edit_has_its_mask_and_a_bad_one_costs_its_edit_alone(tmp_path: Path) -> None:
    left, wide = a_mask(tmp_path / "left.mp4", 12), a_mask(tmp_path / "wide.mp4", 20)
    black, short = a_mask(tmp_path / "black.mp4", 0), a_mask(tmp_path / "short.mp4", 12, 3)
    row = the_row(
        tmp_path, own=left, found="auto", free="none", of_row=None, bad=black, worse=short, gone="x"
    )
    assert run(tmp_path, [{**row, "mask": wide}], mask_grow=0) == EXIT_SOME_FAILED
    made = {edit: row for (_, edit), row in results(tmp_path).items()}
    assert {name for name, row in made.items() if row["error_code"]} == {"bad", "worse", "gone"}
    for name, said in (("bad", "nothing white"), ("worse", "has 3 frames"), ("gone", "no such")):
        assert made[name]["error_code"] == "bad_mask"
        assert f"the mask {tmp_path}/" in made[name]["error"] and said in made[name]["error"]
        assert (made[name]["mask"], made[name]["output"]) == (None, None)
    assert made["free"]["mask"] is None
    assert {row["instruction"] for row in made.values()} == {f"make it {name}" for name in made}
    for name, columns in (("own", 12), ("of_row", 20)):
        assert made[name]["mask"] == f"masks/a/{name}.mp4"
        expected = torch.zeros(FRAMES, SIDE, SIDE, dtype=torch.bool)
        expected[:, :, :columns] = True
        assert torch.equal(is_white(tmp_path, made[name]), expected)
    found = is_white(tmp_path, made["found"])
    assert 0 < found.float().mean() < 1
    # Of edits alike but for their masks, more of the source is in the one with the smaller mask.
    source = clip(tmp_path, made["own"]["source"]).float()
    right = {
        name: (clip(tmp_path, made[name]["output"])[:, :, 24:] - source[:, :, 24:]).abs().mean()
        for name in ("own", "free")
    }
    assert right["own"] < 0.7 * right["free"]
    forwards = {str(made[name]["forwards"]) for name in ("own", "found", "free", "of_row")}
    assert len(forwards) == 1  # a mask costs none


def test_a_composite_has_the_sources_own_pixels_outside_of_the_mask(tmp_path: Path) -> None:
    left = a_mask(tmp_path / "left.mp4", 12)
    row = the_row(tmp_path, one=left)
    assert run(tmp_path, [row], composite=True, mask_grow=0) == EXIT_DONE
    (made,) = results(tmp_path).values()
    pair = [clip(tmp_path, made[name]).float()[:, :, 14:] for name in ("output", "source")]
    assert (pair[0] - pair[1]).abs().mean() < 1.5


def test_an_edit_whose_stored_mask_is_gone_is_lost_and_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = a_mask(tmp_path / "left.mp4", 12)
    row = the_row(tmp_path, one=left, two=None)
    assert run(tmp_path, [row]) == EXIT_DONE
    output = str(tmp_path / "out")
    assert app(["verify", output, "--decode"], standalone_mode=False) == EXIT_DONE
    stored = tmp_path / "out/masks/a/one.mp4"
    before = stored.read_bytes()
    stored.unlink()
    capsys.readouterr()
    assert app(["verify", output], standalone_mode=False) == EXIT_SOME_FAILED
    said = "edits/a/one.mp4 has lost its mask: masks/a/one.mp4 is gone"
    assert said in "".join(capsys.readouterr())
    assert run(tmp_path, [row]) == EXIT_DONE
    assert stored.read_bytes() == before


def test_what_the_job_does_not_ask_for_makes_no_edit_anew(tmp_path: Path) -> None:
    row = the_row(tmp_path, one=None)
    assert run(tmp_path, [row]) == EXIT_DONE
    ((_, first),) = results(tmp_path).items()
    row["edits"][0] |= {"instruction": "another wish", "mask": "none"}
    assert run(tmp_path, [row]) == EXIT_DONE
    ((_, second),) = results(tmp_path).items()
    assert second["finished_at"] == first["finished_at"]
    row["edits"][0] |= {"mask": "auto"}
    assert run(tmp_path, [row]) == EXIT_DONE
    ((_, third),) = results(tmp_path).items()
    assert third["finished_at"] > first["finished_at"] and third["mask"] == "masks/a/one.mp4"


def test_a_mask_that_cannot_be_found_from_noise_is_refused_before_a_group_starts(
    tmp_path: Path,
) -> None:
    assert run(tmp_path, [the_row(tmp_path, one="auto")], start="noise") == EXIT_SOME_FAILED
    (made,) = results(tmp_path).values()
    assert (made["error_code"], made["attempts"]) == ("bad_mask", EditResult().attempts)
    assert "start is noise" in made["error"]
