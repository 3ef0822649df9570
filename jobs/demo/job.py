"""The demo: three drawn clips with two prompts each, and the job that edits them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.demo import world
from jobs.demo.world import Object, Scene
from jobs.demo.world import Path as Way
from jobs.errors import JobError

RED_SQUARE = Scene((Object("red", "square", 12.0, Way((22.0, 32.0), "right", 20.0)),), "white")
BLUE_RING = Scene((Object("blue", "ring", 12.0, Way((34.0, 22.0), "down", 18.0)),), "black")
YELLOW_CROSS = Scene((Object("yellow", "cross", 11.0, Way((42.0, 34.0), "left", 20.0)),), "black")

CLIPS: dict[str, tuple[Scene, dict[str, Scene]]] = {
    "red-square": (
        RED_SQUARE,
        {
            "green": world.with_colour(RED_SQUARE, "green"),
            "ring": world.with_shape(RED_SQUARE, "ring"),
        },
    ),
    "blue-ring": (
        BLUE_RING,
        {
            "yellow": world.with_colour(BLUE_RING, "yellow"),
            "cross": world.with_shape(BLUE_RING, "cross"),
        },
    ),
    "yellow-cross": (
        YELLOW_CROSS,
        {
            "square": world.with_shape(YELLOW_CROSS, "square"),
            "ring": world.with_shape(YELLOW_CROSS, "ring"),
        },
    ),
}
"""For each clip its scene, and the scene that each of its edits asks for."""


def write_demo(folder: Path) -> dict[str, Any]:
    """Draw the clips and write their manifest; returns the job.

    Args:
        folder: a local one.

    Raises:
        JobError: it cannot be written.
    """
    from jobs.manifest.writing import write_manifest
    from pipeline.media.encoding import write_clip

    clips = folder / "clips"
    try:
        clips.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        in_the_way = next((one for one in (clips, *clips.parents) if one.is_file()), None)
        why = f"{in_the_way} is a file" if in_the_way else error.strerror
        raise JobError(
            f"--output {str(folder)!r}: {why}; expected a folder that can be written to"
        ) from error
    rows = []
    for name, (scene, edits) in CLIPS.items():
        path = clips / f"{name}.mp4"
        if not path.exists():
            with path.open("wb") as file:
                write_clip(file, world.draw(scene), fps=world.FPS)
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
        "name": "demo",
        "manifest": str(folder / "manifest.parquet"),
        "output": str(folder / "output"),
        "inversion": {"steps": 25},
    }
