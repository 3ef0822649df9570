"""What must hold after faults: each edit once, files whole, nothing done again, nothing left."""

from __future__ import annotations

import io
import os
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import av
import pyarrow.parquet as pq

from pipeline.storage import Folder
from pipeline.trajectories.index import CHUNKS, INDEX, TrajectoryDamaged, read_index
from tests.faults.scene.dataset import Dataset
from tests.faults.scene.places import Place
from tests.faults.scene.processes import Family, Process

Edit = tuple[str, str]
GONE_S = 60.0
"""What a run leaves must be gone by then: Ray takes some seconds to see that a driver is gone."""
OF_THE_CLUSTER = {"head", "raylet", "agent", "idle", "starting", "other"}
"""What is there with or without a run, where the cluster is not the run's own."""
OF_RAY = re.compile(
    r"ActorLocationTracker|_AutoscalingCoordinatorActor|_StatsActor|_UsageCollectionActor"
)
"""Ray Data's own actors, which it leaves in a cluster for the next job."""
SHARED_MEMORY = Path("/dev/shm")
CACHES = ("torchinductor_",)
"""Folders that libraries keep for all processes of a user."""


@dataclass(frozen=True)
class Committed:
    """An edit that stands in the results.

    Args:
        file: the version of its file.
        run, finished_at: as its row says.
    """

    file: str
    run: str
    finished_at: datetime


def result_rows(place: Place) -> list[dict[str, Any]]:
    """All rows of the results, read by pyarrow alone."""
    rows = []
    for name in place.versions():
        if name.startswith("results/") and name.endswith(".parquet") and "/." not in name:
            rows += pq.read_table(io.BytesIO(place.read(name))).to_pylist()
    return rows


def committed(place: Place) -> dict[Edit, Committed]:
    """The edits whose newest row is `ok`."""
    versions = place.versions()
    newest: dict[Edit, dict[str, Any]] = {}
    for row in result_rows(place):
        edit = row["video_id"], row["edit_id"]
        at = row["run"], row["finished_at"]
        if edit not in newest or (newest[edit]["run"], newest[edit]["finished_at"]) <= at:
            newest[edit] = row
    return {
        edit: Committed(versions.get(row["output"], "gone"), row["run"], row["finished_at"])
        for edit, row in newest.items()
        if row["status"] == "ok"
    }


def made_again(before: Mapping[Edit, Committed], after: Mapping[Edit, Committed]) -> list[str]:
    """The edits that were done and are otherwise now."""
    return [
        f"{edit} was done, {was}, and is now {after.get(edit)}"
        for edit, was in before.items()
        if after.get(edit) != was
    ]


def unfinished(place: Place, dataset: Dataset, statuses: tuple[str, ...] = ("ok",)) -> list[str]:
    """What is wrong with the results of a job that ended: rows missing, doubled, or not done."""
    rows = result_rows(place)
    counts = Counter((row["video_id"], row["edit_id"]) for row in rows)
    found = [f"{edit} has no result" for edit in sorted(dataset.edits - counts.keys())]
    found += [f"{edit} has a result and is not asked for" for edit in counts.keys() - dataset.edits]
    found += [f"{edit} has {count} results" for edit, count in counts.items() if count > 1]
    found += [
        f"{row['video_id']}/{row['edit_id']}: {row['status']}: {row['error']}"
        for row in rows
        if row["status"] not in statuses
    ]
    return found


def damaged(place: Place) -> list[str]:
    """The files that are not whole, and those that nothing names."""
    versions = place.versions()
    found, named = [], {"job.yaml", ".retake"}
    for row in result_rows(place):
        if row["status"] != "ok":
            continue
        for name in (row["output"], row["source"]):
            if name in named:
                continue
            named.add(name)
            if name not in versions:
                found.append(f"{name}: is gone")
            elif problem := _not_decoded(place.read(name), row["frames"]):
                found.append(f"{name}: {problem}")
    for name in versions:
        folder, _, rest = name.partition("/")
        if name.rsplit("/", 1)[-1].startswith("."):
            found.append(f"{name}: a temporary file is left")
        elif folder == "attempts":
            found.append(f"{name}: a record of a try is left")
        elif folder == "edits" and name not in named:
            found.append(f"{name}: no result names it")
        elif rest.endswith(INDEX):
            found += _damaged_trajectory(place, name.removesuffix(f"/{INDEX}"))
    return found


def _not_decoded(data: bytes, frames: int) -> str:
    try:
        with av.open(io.BytesIO(data)) as file:
            decoded = sum(1 for _ in file.decode(video=0))
    except Exception as error:
        return f"does not decode: {error}"
    return "" if decoded == frames else f"{decoded} frames, expected {frames}"


def _damaged_trajectory(place: Place, folder: str) -> list[str]:
    """Read a trajectory whole, and check each chunk, as the groups that use it do."""
    from pipeline.trajectories.reader import TrajectoryReader

    stored = _Stored(place.uri.rstrip("/") + f"/{folder}", place, folder)
    try:
        index = read_index(stored, folder.rpartition("/")[2])
        assert index is not None
        assert index.chunks_held(0) == CHUNKS
        with TrajectoryReader(stored, index) as reader:
            for level in range(index.highest, -1, -1):
                reader.entry(level)
    except (TrajectoryDamaged, AssertionError) as error:
        return [f"{folder}: {error}"]
    return []


class _Stored(Folder):
    """A folder of a place, read past the proxy that stands before its storage."""

    def __init__(self, uri: str, place: Place, folder: str) -> None:
        super().__init__(uri)
        object.__setattr__(self, "place", place)
        object.__setattr__(self, "folder", folder)

    def read(self, name: str) -> bytes:
        try:
            return self.place.read(f"{self.folder}/{name}")  # type: ignore[attr-defined]
        except Exception as error:
            raise FileNotFoundError(name) from error

    def read_range(self, name: str, start: int, end: int) -> bytes:
        return self.read(name)[start:end]

    def size(self, name: str) -> int:
        return len(self.read(name))


def left_behind(family: Family, folder: Path, shared: set[str], *, own_cluster: bool) -> list[str]:
    """What is there after the end that was not there before: processes, files, shared memory.

    Ports go with their processes.

    Args:
        folder: of `environment`.
        shared: the names in /dev/shm before.
        own_cluster: whether Ray itself was started by the run, and must be gone too.
    """
    until = time.monotonic() + GONE_S
    while True:
        there = [one for one in family.look() if own_cluster or not _of_the_cluster(one)]
        found = [f"process {one}" for one in there]
        found += [f"temporary file {path}" for path in _temporary(folder / "tmp")]
        found += [f"shared memory {name}" for name in unused_memory() - shared]
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.5)


def _of_the_cluster(one: Process) -> bool:
    return one.role in OF_THE_CLUSTER or bool(OF_RAY.search(one.command))


def _temporary(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(CACHES)]


def unused_memory() -> set[str]:
    """Shared memory that no process holds."""
    names = set(os.listdir(SHARED_MEMORY))
    for process in Path("/proc").glob("[0-9]*"):
        if not names:
            break
        try:
            held = (process / "maps").read_text(errors="replace")
            held += " ".join(os.readlink(fd) for fd in (process / "fd").iterdir())
        except OSError:
            continue
        names -= {name for name in names if f"{SHARED_MEMORY}/{name}" in held}
    return names
