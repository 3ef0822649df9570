"""The Python of the documentation runs, on the embedded checkpoint and a drawn clip."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from jobs.demo import world
from jobs.demo.job import CLIPS
from pipeline.media.encoding import write_clip
from tests.docs.pages import ROOT, blocks

NOTEBOOK = ROOT / "docs/one-video.ipynb"
QUICK = {'"zai-org/CogVideoX-5b"': '"embedded"', "steps=50": "steps=3"}
"""What is replaced in the documentation's code: the checkpoint, and numbers that only cost time."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the clip that the examples name."""
    scene, _ = next(iter(CLIPS.values()))
    with (tmp_path / "horse.mp4").open("wb") as file:
        write_clip(file, torch.from_numpy(world.draw(scene)), fps=world.FPS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(code: str, names: dict[str, Any], place: str) -> None:
    for text, quick in QUICK.items():
        code = code.replace(text, quick)
    exec(compile(code, place, "exec"), names)


def test_the_page_on_masks_keeps_the_background(folder: Path) -> None:
    scene, _ = next(iter(CLIPS.values()))
    white = 255 * (world.draw_masks(scene).max(axis=(0, 1)) > 0)
    Image.fromarray(white.astype("uint8")).save(folder / "horse.png")
    names: dict[str, Any] = {}
    for number, code in enumerate(blocks(ROOT / "docs/masks.md", "python")):
        run(code, names, f"docs/masks.md, block {number + 1}")
    assert names["found"][0].shape == (9, 64, 64, 3)
    source, edit = names["clip"].frames, names["given"][0]
    same = (edit == source).all(-1).float().mean()
    assert 0.3 < same < 1


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_pages_blocks_run_in_order(page: str, folder: Path) -> None:
    found = blocks(ROOT / page, "python")
    assert found
    names: dict[str, Any] = {}
    for number, code in enumerate(found):
        run(code, names, f"{page}, block {number + 1}")
    assert all(video.shape == (9, 64, 64, 3) for video in names["videos"])
    if page == "README.md":
        assert (folder / "zebra.mp4").stat().st_size > 0
        assert (folder / "horse.trajectory").exists()


def test_the_notebook_runs_and_holds_no_outputs(folder: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in code)
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(code):
        run("".join(cell["source"]), names, f"one-video.ipynb, code cell {number + 1}")
    assert (folder / "yellow.mp4").stat().st_size > 0


def test_code_that_only_repeats_others_names_what_is_there() -> None:
    """Inline code such as `Trajectory.load(...)` names public members."""
    import pipeline

    for page in ("README.md", "docs/guide.md", "docs/architecture.md", "CHANGELOG.md"):
        text = (ROOT / page).read_text()
        for owner, member in re.findall(r"`(Editor|Trajectory)\.(\w+)", text):
            assert hasattr(getattr(pipeline, owner), member), f"{page}: {owner}.{member}"
