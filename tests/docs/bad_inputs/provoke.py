"""What a bad input costs and gets: made here as a job meets it, without a process of its own."""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.results.damaged import Damaged
from cluster.results.parts import read_parts
from cluster.rows import EditFailure, check_row
from jobs.errors import UserError
from jobs.manifest.checks import check_manifest
from jobs.prepare import RESERVED
from jobs.spec import load_job
from pipeline.errors import RowError, UnsupportedCheckpoint
from pipeline.inputs.masks import read_mask
from pipeline.media.apart import read_clip_apart
from pipeline.model.checkpoint import open_checkpoint
from pipeline.settings import Limits, VideoSettings
from pipeline.storage import Folder, local_copy
from pipeline.trajectories.index import TrajectoryDamaged
from pipeline.trajectories.trajectory import Trajectory
from tests.drawn_videos import draw, grays
from tests.small_models import write_checkpoint

COMMAND, ROW, EDIT, FILE, TRAJECTORY = (
    "the command",
    "its edits",
    "the edit",
    "the file",
    "the trajectory",
)
"""What an input can cost: the command does not run; the edits of the video, or one of them, fail;
the file is set aside and what it held is made again; the video is inverted again."""
JOB = "manifest: m.parquet\noutput: out\n"
EDITS = [{"edit_id": "a", "prompt": "a zebra"}]


class Outcome(NamedTuple):
    """What an input costs, and what it gets: an error code, or a message."""

    costs: str
    gets: str


def outcome(do: Callable[[], Any]) -> Outcome:
    try:
        found = do()
    except RowError as error:
        return Outcome(ROW, error.code)
    except TrajectoryDamaged as error:
        return Outcome(TRAJECTORY, str(error))
    except (UserError, UnsupportedCheckpoint) as error:
        return Outcome(COMMAND, str(error))
    if isinstance(found, EditFailure):
        return Outcome(EDIT, found.code)
    if isinstance(found, Damaged):
        return Outcome(FILE, found.why)
    return Outcome("nothing", repr(found))


def job(text: str | bytes, name: str = "job.yaml") -> Any:
    """A job file of this text."""
    data = text.encode() if isinstance(text, str) else text
    Path(name).write_bytes(data)
    return load_job(name)


def set_to(line: str) -> Any:
    """A job file with a line more."""
    return job(f"{JOB}{line}\n")


def manifest(table: pa.Table | bytes, name: str = "t.parquet") -> Any:
    if isinstance(table, bytes):
        Path(name).write_bytes(table)
    else:
        pq.write_table(table, name)
    return check_manifest(name, reserved=RESERVED)


def columns(**values: Any) -> Any:
    """A manifest of one row with these columns."""
    rows = {"video": "a.mp4", "edits": EDITS, **values}
    return manifest(pa.Table.from_pylist([{k: v for k, v in rows.items() if v is not ...}]))


def row(**values: Any) -> Any:
    """A row of a manifest; its bad edit, if it is none of the whole row."""
    checked = check_row({"video": "a.mp4", "edits": EDITS, **values})
    return checked.failures[0] if checked.failures else checked


def edit(**values: Any) -> Any:
    return row(edits=[*EDITS, {"prompt": "a cow", **values}])


def location(uri: str, **limits: Any) -> Any:
    """A video at a location."""
    most = Limits(**limits)
    with local_copy(uri, most_bytes=int(most.file_gb * 1e9)) as (file, _):
        return read_clip_apart(file, name=uri, height=48, width=64, frames=9, limits=most)


def video(data: bytes, name: str = "v.mp4", **limits: Any) -> Any:
    """A file of these bytes."""
    Path(name).write_bytes(data)
    return location(name, **limits)


def mask(data: bytes | None, name: str = "m.mp4") -> Any:
    """A mask of these bytes for a clip of 9 frames of 64x48; none where there is no file."""
    Path(name).unlink(missing_ok=True)
    if data is not None:
        Path(name).write_bytes(data)
    clip = video(draw(grays(9)))
    with tempfile.TemporaryDirectory(dir=".") as place:
        write_checkpoint(Path(place) / "model", "5b")
        info = open_checkpoint(f"{place}/model")
        size = VideoSettings(height=48, width=64, frames=9)
        try:
            return read_mask(name, clip, size, info)
        except RowError as error:
            return EditFailure("e", error.code, error.message)


def pipe() -> Any:
    os.mkfifo("pipe.mp4")
    return location("pipe.mp4")


def packed(data: bytes, member: str = "a.mp4", **limits: Any) -> Any:
    """A video in a ZIP archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.mp4", data)
    Path("z.zip").write_bytes(buffer.getvalue())
    return location(f"zip://{member}::z.zip", **limits)


def checkpoint(change: Callable[[Path], Any]) -> Any:
    """A checkpoint's folder after a change."""
    with tempfile.TemporaryDirectory(dir=".") as place:
        folder = Path(place) / "model"
        write_checkpoint(folder, "5b")
        change(folder)
        return open_checkpoint(str(folder))


def results(data: bytes | pa.Table) -> Any:
    """A file in the results of a job."""
    with tempfile.TemporaryDirectory(dir=".") as place:
        (Path(place) / "results").mkdir()
        file = Path(place) / "results/run-1-000000.parquet"
        if isinstance(data, bytes):
            file.write_bytes(data)
        else:
            pq.write_table(data, file)
        damaged: list[Damaged] = []
        list(read_parts(Folder(place), None, damaged.append))
        return damaged[0] if damaged else None


def index(text: str) -> Any:
    """A trajectory whose index has this text."""
    with tempfile.TemporaryDirectory(dir=".") as place:
        Path(place, "index.json").write_text(text)
        return Trajectory.load(place)


def cut(name: str, size: int = 1000) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def put(name: str, data: str | bytes) -> Callable[[Path], Any]:
    content = data.encode() if isinstance(data, str) else data
    return lambda folder: (folder / name).write_bytes(content)


def renamed(name: str, other: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).rename(folder / other)


def changed(name: str, **values: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | values))

    return change
