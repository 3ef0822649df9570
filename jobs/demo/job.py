"""The demo: a few drawn clips, prompts for them, and the job that edits them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

FRAMES, SIZE, FPS = 9, 48, 8.0
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220)}
CLIPS = (
    ("red-circle", "circle", "red", (1, 0), ("blue", "green")),
    ("green-square", "square", "green", (0, 1), ("red", "blue")),
    ("blue-circle", "circle", "blue", (-1, 0), ("red", "green")),
)


def write_demo(folder: Path) -> dict[str, Any]:
    """Draw the clips and write their manifest; returns the job."""
    import torch

    from jobs.manifest import write_manifest
    from pipeline.video import write_clip

    clips = folder / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, shape, colour, direction, others in CLIPS:
        path = clips / f"{name}.mp4"
        if not path.exists():
            with path.open("wb") as file:
                write_clip(file, torch.from_numpy(draw(shape, colour, direction)), fps=FPS)
        rows.append(
            {
                "video": f"clips/{name}.mp4",
                "video_id": name,
                "source_prompt": prompt(colour, shape, direction),
                "edits": [
                    {"edit_id": other, "prompt": prompt(other, shape, direction)}
                    for other in others
                ],
            }
        )
    write_manifest(rows, str(folder / "manifest.parquet"))
    return {
        "manifest": str(folder / "manifest.parquet"),
        "output": str(folder / "output"),
        "inversion": {"steps": 25},
    }


def prompt(colour: str, shape: str, direction: tuple[int, int]) -> str:
    way = {(1, 0): "right", (-1, 0): "left", (0, 1): "down", (0, -1): "up"}[direction]
    return f"a {colour} {shape} moving {way} on a white background"


def draw(shape: str, colour: str, direction: tuple[int, int]) -> np.ndarray:
    """Frames, uint8 [F, H, W, 3], of one shape that crosses a white background."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    frames = np.full((FRAMES, SIZE, SIZE, 3), 255, np.uint8)
    for i, frame in enumerate(frames):
        along = 3.0 * (i - FRAMES // 2)
        x = SIZE / 2 + direction[0] * along
        y = SIZE / 2 + direction[1] * along
        if shape == "circle":
            inside = (columns - x) ** 2 + (rows - y) ** 2 < 8**2
        else:
            inside = np.maximum(abs(columns - x), abs(rows - y)) < 7
        frame[inside] = COLOURS[colour]
    return frames
