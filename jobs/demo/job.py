"""The demo: three drawn clips with two prompts each, and the job that edits them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.demo import world
from jobs.demo.world import Object, Scene
from jobs.demo.world import Path as Way

RED_CIRCLE = Scene((Object("red", "circle", 12.0, Way((22.0, 32.0), "right", 20.0)),), "white")
BLUE_SQUARE = Scene((Object("blue", "square", 11.0, Way((34.0, 22.0), "down", 18.0)),), "black")
YELLOW_STAR = Scene((Object("yellow", "star", 11.0, Way((42.0, 34.0), "left", 20.0)),), "black")

CLIPS: dict[str, tuple[Scene, dict[str, Scene]]] = {
    "red-circle": (
        RED_CIRCLE,
        {
            "green": world.with_colour(RED_CIRCLE, "green"),
            "on-black": world.with_background(RED_CIRCLE, "black"),
        },
    ),
    "blue-square": (
        BLUE_SQUARE,
        {
            "red": world.with_colour(BLUE_SQUARE, "red"),
            "yellow": world.with_colour(BLUE_SQUARE, "yellow"),
        },
    ),
    "yellow-star": (
        YELLOW_STAR,
        {
            "purple": world.with_colour(YELLOW_STAR, "purple"),
            "on-white": world.with_background(YELLOW_STAR, "white"),
        },
    ),
}
"""For each clip its scene, and the scene that each of its edits asks for."""


def write_demo(folder: Path) -> dict[str, Any]:
    """Draw the clips and write their manifest; returns the job."""
    import torch

    from jobs.manifest import write_manifest
    from pipeline.video import write_clip

    clips = folder / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, (scene, edits) in CLIPS.items():
        path = clips / f"{name}.mp4"
        if not path.exists():
            with path.open("wb") as file:
                write_clip(file, torch.from_numpy(world.draw(scene)), fps=world.FPS)
        rows.append(
            {
                "video": f"clips/{name}.mp4",
                "video_id": name,
                "source_prompt": world.prompt(scene),
                "edits": [
                    {"edit_id": edit, "prompt": world.prompt(asked)}
                    for edit, asked in edits.items()
                ],
            }
        )
    write_manifest(rows, str(folder / "manifest.parquet"))
    return {
        "manifest": str(folder / "manifest.parquet"),
        "output": str(folder / "output"),
        "inversion": {"steps": 25},
    }
