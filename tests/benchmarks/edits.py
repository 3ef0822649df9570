"""Judges edits of held-out drawn clips, made by the real job, one table row for each setting.

    python -m tests.benchmarks.edits [--clips 48] [--only NAME ...] [--checkpoint FOLDER]

Every clip gets two edits of colour, one of shape, one of the background and one of nothing (its own
prompt). The verdict is in pixels: what stands in the source's place, how far its centre is, what
became of the background (`jobs/demo/judge.py`). Defaults are chosen from the table in `edits.md`.

Rows are kept in `edits.parquet` of the output folder, one for each checkpoint, setting and number
of clips, so a table may come from several runs. `--table edits.md` writes all of them, and leaves
what the file says below its table. The verdict on each single edit is in `verdicts.parquet` beside
the job's output. Exits with 1 where the defaults miss a target on 48 clips or more.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cluster.results.parts import read_parts
from jobs.demo import world
from jobs.demo.judge import judge
from jobs.manifest.writing import write_manifest
from jobs.run import run_job
from jobs.spec import parse_job
from pipeline.media.decoding import read_clip
from pipeline.media.encoding import write_clip
from pipeline.plan import highest_stored
from pipeline.settings import Reconstruction
from pipeline.storage import Folder

SEED = 20_261_122
"""Of the held-out clips; training draws from other seeds."""
STEPS = 25
EDITS = 5
"""Of each clip, made at once."""
EVERYWHERE = {"guidance_steps": [0, 1]}
SCRIPT = {"start": "noise", "reference": "script", "guidance_scale": 6, **EVERYWHERE}

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "the public script's recipe": {"inversion": {"method": "script"}, "reconstruction": SCRIPT},
    "its recipe on a true trajectory": {"reconstruction": SCRIPT},
    "start 0.3": {"reconstruction": {"start": 0.3}},
    "start 0.4": {"reconstruction": {"start": 0.4}},
    "start 0.5": {"reconstruction": {"start": 0.5}},
    "start 0.6": {"reconstruction": {"start": 0.6}},
    "start 0.8": {"reconstruction": {"start": 0.8}},
    "start inverted": {"reconstruction": {"start": "inverted"}},
    "start noise": {"reconstruction": {"start": "noise"}},
    "guidance 1.5": {"reconstruction": {"guidance_scale": 1.5}},
    "guidance 3": {"reconstruction": {"guidance_scale": 3}},
    "guidance 6": {"reconstruction": {"guidance_scale": 6}},
    "guidance in all steps": {"reconstruction": EVERYWHERE},
    "guidance 3 in all steps": {"reconstruction": {"guidance_scale": 3, **EVERYWHERE}},
    "dynamic guidance": {"reconstruction": {"dynamic_guidance": True, **EVERYWHERE}},
    "reference shared": {"reconstruction": {"reference": "shared"}},
    "reference source": {"reconstruction": {"reference": "source"}},
    "reference none": {"reconstruction": {"reference": "none"}},
    "inject first half": {"reconstruction": {"inject_steps": [0, 0.5]}},
    "inject second half": {"reconstruction": {"inject_steps": [0.5, 1]}},
    "residual": {"reconstruction": {"residual": True}},
    "ddim": {"inversion": {"method": "ddim"}},
    "fixed point": {"inversion": {"method": "fixed_point"}},
    "10 steps": {"inversion": {"steps": 10}},
    "50 steps": {"inversion": {"steps": 50}},
}

AT_LEAST = {
    "colour_right": 0.95,
    "shape_right": 0.80,
    "colour_background_db": 30.0,
    "vae_psnr_db": 30.0,
}
AT_MOST = {"colour_centroid_px": 2.0}
"""What the defaults are to reach, and what they are not to exceed."""

Key = tuple[str, str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--only", nargs="*", default=list(SETTINGS))
    parser.add_argument("--output", type=Path, default=Path("build/edits"))
    parser.add_argument("--checkpoint", default="embedded", help="a folder in diffusers format")
    parser.add_argument(
        "--table", type=Path, default=None, help="where to write the Markdown table"
    )
    arguments = parser.parse_args()
    folder = arguments.output / Path(arguments.checkpoint).name / f"{arguments.clips}-clips"
    manifest = folder / "manifest.parquet"
    asked = write_clips(folder, arguments.clips, manifest)
    for name in arguments.only:
        began = time.monotonic()
        output = run(name, manifest, folder, arguments.checkpoint)
        row = {
            "checkpoint": Path(arguments.checkpoint).name,
            "setting": name,
            "clips": arguments.clips,
            **summary(output, asked, round_trip_forwards(name)),
            "seconds": time.monotonic() - began,
        }
        rows = keep(row, arguments.output / "edits.parquet")
        if arguments.table:
            arguments.table.write_text(as_markdown(rows) + prose(arguments.table))
    print(as_markdown(rows))
    return 1 if any(map(missed, rows)) else 0


def missed(row: dict[str, Any]) -> bool:
    """Whether a row is that of the defaults and below a target."""
    if row["setting"] != "defaults" or row["clips"] < 48:
        return False
    below = any(row[name] < target for name, target in AT_LEAST.items())
    return below or any(row[name] > target for name, target in AT_MOST.items())


def keep(row: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """Add a row to the Parquet file, in place of an older one of its kind; returns all rows."""

    def kind(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["checkpoint"], row["setting"], row["clips"]

    older = pq.read_table(path).to_pylist() if path.exists() else []
    rows = [other for other in older if kind(other) != kind(row)] + [row]
    rows.sort(key=lambda row: (row["checkpoint"], -row["clips"], [*SETTINGS].index(row["setting"])))
    pq.write_table(pa.Table.from_pylist(rows), path)
    return rows


def prose(path: Path) -> str:
    """What a table's file says below the table, from its first second-level heading on."""
    text = path.read_text() if path.exists() else ""
    return "\n" + text[text.index("## ") :] if "## " in text else ""


def write_clips(folder: Path, count: int, manifest: Path) -> dict[Key, tuple[Any, Any]]:
    """Draw the clips and their manifest; returns the source and the asked scene of each edit."""
    rng = np.random.default_rng(SEED)
    asked: dict[Key, tuple[Any, Any]] = {}
    rows = []
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        scene = world.random_scene(rng)
        video = f"clip-{number:03d}"
        with (folder / "clips" / f"{video}.mp4").open("wb") as file:
            write_clip(file, torch.from_numpy(world.draw(scene)), fps=world.FPS)
        edits = dict(wishes(scene, rng))
        for edit, wish in edits.items():
            asked[video, edit] = scene, wish
        rows.append(
            {
                "video": f"clips/{video}.mp4",
                "video_id": video,
                "source_prompt": world.prompt(scene),
                "edits": [{"edit_id": e, "prompt": world.prompt(w)} for e, w in edits.items()],
            }
        )
    write_manifest(rows, str(manifest))
    return asked


def wishes(scene: world.Scene, rng: np.random.Generator) -> Iterator[tuple[str, world.Scene]]:
    """The edits that a clip gets: by id, the scene that is asked for."""
    taken = {one.colour for one in scene.objects}
    free = [colour for colour in world.COLOURS if colour not in taken]
    for number, colour in enumerate(rng.permutation(free)[:2]):
        yield f"colour-{number}", world.with_colour(scene, str(colour))
    shapes = [shape for shape in world.SHAPES if shape != scene.objects[0].shape]
    yield "shape-0", world.with_shape(scene, str(rng.choice(shapes)))
    grounds = [ground for ground in world.BACKGROUNDS if ground != scene.background]
    yield "background-0", world.with_background(scene, str(rng.choice(grounds)))
    yield "nothing-0", scene


def run(name: str, manifest: Path, folder: Path, checkpoint: str) -> Path:
    """Run the job with a setting; returns its output folder."""
    output = folder / name.replace(" ", "-").replace("'", "")
    values: dict[str, Any] = {
        "manifest": str(manifest),
        "output": str(output),
        "checkpoint": checkpoint,
        "video": {"height": world.SIZE, "width": world.SIZE, "frames": world.FRAMES},
        "inversion": {"steps": STEPS, "round_trip": True},
        "reconstruction": {"edits_at_once": EDITS},
    }
    for section, changes in SETTINGS[name].items():
        values[section] = {**values.get(section, {}), **changes}
    failed = run_job(parse_job(values, source=name))
    if failed:
        raise SystemExit(f"{name}: {failed} edits failed")
    return output


def round_trip_forwards(name: str) -> float:
    """What certifying the round trip adds to the forwards of each of a clip's edits."""
    inversion = {"steps": STEPS, **SETTINGS[name].get("inversion", {})}
    settings = Reconstruction(**SETTINGS[name].get("reconstruction", {}))
    return highest_stored(settings, int(inversion["steps"])) / EDITS


def summary(
    output: Path, asked: Mapping[Key, tuple[Any, Any]], certifying: float
) -> dict[str, Any]:
    """The mean verdict on each kind of edit; the single ones are written to a file."""
    verdicts: dict[str, list[Any]] = {}
    single: list[dict[str, Any]] = []
    results = [row for _, table in read_parts(Folder(str(output))) for row in table.to_pylist()]
    for row in results:
        scene, wish = asked[row["video_id"], row["edit_id"]]
        with (output / row["output"]).open("rb") as file:
            clip = read_clip(
                file, name=row["output"], height=world.SIZE, width=world.SIZE, frames=world.FRAMES
            )
        verdict = judge(scene, wish, clip.frames.numpy())
        verdicts.setdefault(row["edit_id"].split("-")[0], []).append(verdict)
        named = {name: row[name] for name in ("video_id", "edit_id", "prompt")}
        single.append({**named, **asdict(verdict), **row["metrics"]})
    pq.write_table(pa.Table.from_pylist(single), output / "verdicts.parquet")
    means: dict[str, Any] = {"edits": len(results)}
    for kind, found in sorted(verdicts.items()):
        right = {
            "colour": [v.colour_right for v in found],
            "shape": [v.shape_right for v in found],
            "background": [v.background_right for v in found],
            "nothing": [v.colour_right and v.shape_right and v.background_right for v in found],
        }[kind]
        means[f"{kind}_right"] = float(np.mean(right))
        means[f"{kind}_centroid_px"] = float(np.mean([v.mean_centroid_error_px for v in found]))
        means[f"{kind}_iou"] = float(np.mean([v.iou for v in found]))
        means[f"{kind}_background_db"] = float(np.mean([v.background_psnr_db for v in found]))
    for name in ("round_trip_db", "vae_psnr_db", "flicker", "motion_agreement"):
        values = [r["metrics"][name] for r in results if r["metrics"][name] is not None]
        means[name] = float(np.mean(values)) if values else None
    spent = [r["forwards"] for r in results]
    means["forwards"] = float(np.mean([sum(f.values()) for f in spent])) - certifying
    return means


COLUMNS = {
    "checkpoint": "checkpoint",
    "setting": "setting",
    "clips": "clips",
    "colour_right": "colour right",
    "colour_centroid_px": "centroid px",
    "colour_iou": "IoU",
    "colour_background_db": "background dB",
    "shape_right": "shape right",
    "background_right": "background right",
    "nothing_right": "nothing right",
    "nothing_background_db": "nothing: background dB",
    "flicker": "flicker",
    "motion_agreement": "motion",
    "round_trip_db": "round trip dB",
    "forwards": "forwards an edit",
}


def as_markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Edits of held-out drawn clips, by setting",
        "",
        f"{date.today()}; {STEPS} steps, {world.SIZE}x{world.SIZE}, {world.FRAMES} frames, "
        f"{platform.machine()} CPU, clips of seed {SEED}. Two colour edits, one of shape, one of "
        "the background and one of nothing for each clip, through the real job; centroid, IoU and "
        "background are those of the colour edits; the round trip is in latent space, up to the "
        "level that edits start from; the forwards are of five edits made at once, without those "
        "that certify the round trip. Written by `python -m tests.benchmarks.edits --table`.",
        "",
        "| " + " | ".join(COLUMNS.values()) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    for row in rows:
        lines.append("| " + " | ".join(_shown(row.get(name)) for name in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str | int):
        return str(value)
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
