"""What makes a mistake, and gives the message that it gets; the mistakes stand beside it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from typer.testing import CliRunner

from jobs.cli import app
from pipeline import Editor
from pipeline.trajectories.trajectory import Trajectory
from tests.drawn_videos import draw, draw_sound, grays
from tests.report_results import make_row, write_rows
from tests.small_models import write_checkpoint

JOB = "manifest: m.parquet\noutput: out\n"
Mistakes = dict[str, Callable[[], str]]
"""What was done, and a function that does it and gives what was printed."""
EDITS = [{"prompt": "a zebra"}]


def retake(*arguments: str) -> str:
    """What a command says of a mistake: its error, or what `validate` found last."""
    done = CliRunner().invoke(app, list(arguments), prog_name="retake")
    if done.exception and not isinstance(done.exception, SystemExit):
        return f"a traceback: {done.exception!r}"
    if done.exit_code in (1, 2):
        return done.stderr[max(0, done.stderr.find("error: ")) :]
    if done.exit_code == 3:
        return done.output.strip().splitlines()[-1]
    return (
        done.output[done.output.find("warning: ") :]
        .partition("pending")[0]
        .partition("nothing that")[0]
    )


def validate(text: str = "", *arguments: str, whole: bool = False) -> str:
    """What `retake validate` says of a job; `text` follows a manifest and an output."""
    Path("job.yaml").write_text(text if whole else JOB + text)
    return retake("validate", "job.yaml", *arguments)


def manifest(*rows: dict[str, Any], deep: bool = False, **columns: Any) -> str:
    """What `retake validate` says of a manifest of these rows, or columns."""
    table = pa.table(columns) if columns else pa.Table.from_pylist(list(rows))
    pq.write_table(table, "t.parquet")
    return validate("", "--set", "manifest=t.parquet", *["--deep"] * deep)


def row(**changes: Any) -> str:
    return manifest({"video": "horse.mp4", "edits": EDITS, **changes})


def read(video: str, **more: Any) -> str:
    """What `retake validate --deep` says of a video."""
    return manifest({"video": video, "edits": EDITS, **more}, deep=True)


def checkpoint(change: Callable[[Path], Any], of: str = "5b") -> str:
    """What `retake validate` says of a checkpoint's folder after a change."""
    folder = Path(shutil.copytree(of, "ckpt"))
    try:
        change(folder)
        return validate("checkpoint: ckpt\n")
    finally:
        shutil.rmtree(folder)


def convert(name: str, text: str, *options: str) -> str:
    """What `retake manifest` says of a file."""
    Path(name).write_text(text)
    return retake("manifest", name, "x.parquet", *options)


def run_only(name: str, text: str | None = None) -> str:
    """What `retake run --dry-run --only` says."""
    if text is not None:
        Path(name.removeprefix("@")).write_text(text)
    Path("job.yaml").write_text(JOB)
    return retake("run", "job.yaml", "--dry-run", "--only", name)


def without_ray(reach: bool) -> str:
    """What `retake run` says where Ray cannot be reached, or started."""
    Path("job.yaml").write_text(JOB)
    if reach:
        with patch.dict(os.environ, {"RAY_ADDRESS": "127.0.0.1:1"}):
            return retake("run", "job.yaml")
    with patch("cluster.connection._init", side_effect=OSError("no room in /dev/shm")):
        return retake("run", "job.yaml")


def clip(frames: int = 9, height: int = 32, width: int = 48) -> np.ndarray:
    return np.zeros((frames, height, width, 3), np.uint8)


def python(call: Callable[[Editor], Any]) -> str:
    """What is raised by a call with a small editor."""
    if "editor" not in _editors:
        _editors["editor"] = Editor.from_pretrained("5b")
        _editors["editor"].set_progress_bar_config(disable=True)
    try:
        call(_editors["editor"])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


_editors: dict[str, Editor] = {}


def stored() -> Trajectory:
    return Trajectory.load("stored")


def altered() -> Trajectory:
    """A stored trajectory of which a byte was changed."""
    shutil.copytree("stored", "altered", dirs_exist_ok=True)
    file = next(Path("altered").glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-100] ^= 255
    file.write_bytes(bytes(data))
    return Trajectory.load("altered")


def no_index() -> Trajectory:
    shutil.copytree("stored", "cut", dirs_exist_ok=True)
    Path("cut/index.json").write_text("{")
    return Trajectory.load("cut")


def write_files() -> None:
    """The files that the mistakes are made with, in the working directory."""
    _editors.clear()
    video = draw(grays(20))
    files = {"horse.mp4": video, "cut.mp4": video[:-400], "short.mp4": draw(grays(3))}
    files |= {"song.mp4": draw_sound(), "empty.mp4": b"", "text.mp4": b"no video at all\n" * 20}
    for name, data in files.items():
        Path(name).write_bytes(data)
    for name in ("clips", "nothing"):
        Path(name).mkdir()
    shutil.copy("horse.mp4", "clips/a.mp4")
    pq.write_table(pa.Table.from_pylist([{"video": "horse.mp4", "edits": EDITS}]), "m.parquet")
    write_rows("made", [make_row("clip-1", "red")])
    write_checkpoint(Path("5b"), "5b")
    write_checkpoint(Path("pieces"), "5b", pieces=True)
    python(lambda e: e.invert(clip(), steps=3).save("stored"))


def plain(text: str, folder: str) -> str:
    """A message in one line, without colours, frames and the folder that it was made in."""
    text = re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─]", "", text)
    text = text.replace(f"{folder}/", "").replace(folder, ".")
    return " ".join(text.split())
