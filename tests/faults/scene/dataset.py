"""A drawn dataset for the faults: short clips, some edits of each, the embedded checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from jobs.manifest.writing import write_manifest
from pipeline.media.encoding import write_clip

COLOURS = ("red", "green", "blue", "white", "yellow", "black")
PATIENT: dict[str, Any] = {
    # Faults come much closer together than on any cluster: a row that was hit by several of them
    # is not at fault. What a poison row costs is tried in its own tests.
    "retries": 20,
    "start_deadline_s": 180,
    "stall_deadline_s": 45,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "auto": {},
    "shared": {"layout": "shared", "reconstruction": {"groups": 2, "gpus": 1}},
    "pair": {
        "layout": "split",
        "inversion": {"groups": 1, "gpus": 2, "ulysses": 2},
        "reconstruction": {"groups": 2, "gpus": 1},
    },
}
"""What a job asks for by itself; two groups that do both stages; a group of two ranks that inverts,
and two that make edits."""


@dataclass(frozen=True)
class Dataset:
    """A job and what it is to make.

    Args:
        job: its job file.
        output: the path or URI of its output folder.
        edits: (video_id, edit_id) of each edit.
    """

    job: Path
    output: str
    edits: frozenset[tuple[str, str]]


def write_dataset(
    folder: Path,
    output: str,
    *,
    videos: int,
    edits: int,
    layout: str = "shared",
    steps: int = 3,
    elsewhere: Mapping[str, str] | None = None,
    **cluster: Any,
) -> Dataset:
    """Draw the clips, write their manifest and the job.

    Args:
        folder: a local one, for the clips, the manifest and the job file.
        layout: one of `LAYOUTS`.
        steps: of inversion: how long a video takes.
        elsewhere: the URIs of more videos by their ids.
        cluster: settings of the cluster beside those of the layout.
    """
    places = {f"v{number:03}": f"clips/{number}.mp4" for number in range(videos)}
    for number, place in enumerate(places.values()):
        draw_clip(folder / place, number)
    places |= elsewhere or {}
    asked = [{"prompt": f"a {colour} square", "edit_id": colour} for colour in COLOURS[:edits]]
    rows = [{"video": place, "video_id": name, "edits": asked} for name, place in places.items()]
    write_manifest(rows, str(folder / "manifest.parquet"))
    job = folder / "job.yaml"
    job.write_text(
        yaml.safe_dump(
            {
                "manifest": str(folder / "manifest.parquet"),
                "output": output,
                "video": {"height": 32, "width": 32, "frames": 5},
                "inversion": {"steps": steps, "vae_psnr": False},
                "cluster": {**PATIENT, **LAYOUTS[layout], **cluster},
            }
        )
    )
    wanted = {(name, colour) for name in places for colour in COLOURS[:edits]}
    return Dataset(job, output, frozenset(wanted))


def draw_clip(path: Path, number: int) -> None:
    clip = torch.full((6, 40, 56, 3), 30 + 3 * (number % 60), dtype=torch.uint8)
    for frame in range(6):
        square = torch.tensor([220, 40 + number % 200, 40], dtype=torch.uint8)
        clip[frame, 10:20, 4 + 3 * frame : 14 + 3 * frame] = square
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        write_clip(file, clip, fps=8)
