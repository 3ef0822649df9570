"""Deletes stored trajectories that no result needs."""

from __future__ import annotations

from collections import Counter
from typing import get_args, get_type_hints

from cluster.job import Job
from cluster.results.compaction import compact
from cluster.results.ledger import read_parts
from pipeline.settings import TrajectorySettings
from pipeline.storage import Folder
from pipeline.trajectories.index import INDEX, TrajectoryDamaged, read_index

FOLDER = "trajectories"
KEEP: tuple[str, ...] = get_args(get_type_hints(TrajectorySettings)["keep"])


def tidy(job: Job) -> None:
    """Bring the output folder to the state that a run leaves: no edit twice, no unneeded file.

    A run ends with it, and so does one that finds nothing pending: the run before may have been
    killed before it came to this, or the setting `trajectory.keep` may have changed since.
    """
    output = Folder(job.editing.output)
    compact(output, job.run)
    if job.editing.trajectory.keep != "always":
        collect_garbage(output, job.editing.trajectory.keep)


def collect_garbage(output: Folder, keep: str) -> dict[str, int]:
    """Delete the trajectories that no result needs, and the needed ones' files that none reads.

    Nothing else may write to the folder meanwhile.

    Args:
        keep: `always` deletes the trajectories that no result names: settings changed since, or
            the edits were never made. `until_done` and `never` also delete those whose results
            are all `ok`, which only a new prompt would need.

    Returns:
        The bytes deleted of each trajectory that had any, by its key.
    """
    needed = _needed(output, keep)
    deleted: Counter[str] = Counter()
    for key, names in _by_trajectory(output.list(FOLDER)).items():
        unneeded = _not_in_index(output, key, names) if key in needed else names
        if unneeded:
            deleted[key] += _delete(output, unneeded)
        if len(unneeded) == len(names):
            output.remove_folder(f"{FOLDER}/{key}")
    for key, names in _by_trajectory(output.list(FOLDER, scratch=True)).items():
        deleted[key] += _delete(output, names)
    return dict(deleted)


def _needed(output: Folder, keep: str) -> set[str]:
    """The keys of the trajectories that results need."""
    needed: set[str] = set()
    for _, table in read_parts(output, ["trajectory", "status"]):
        columns = (table[name].to_pylist() for name in ("trajectory", "status"))
        for key, status in zip(*columns, strict=True):
            if key is not None and (keep == "always" or status != "ok"):
                needed.add(key)
    return needed


def _by_trajectory(names: list[str]) -> dict[str, list[str]]:
    """Names of files, `trajectories/<key>/...`, by the trajectory's key."""
    files: dict[str, list[str]] = {}
    for name in names:
        files.setdefault(name.split("/")[1], []).append(name)
    return files


def _not_in_index(output: Folder, key: str, names: list[str]) -> list[str]:
    """The files of a trajectory that its index does not list; none where it cannot be read.

    A killed group leaves such shards, and so does one that lost a race to write the index.
    """
    folder = f"{FOLDER}/{key}"
    try:
        index = read_index(output.child(folder), key)
    except TrajectoryDamaged:
        return []  # the next edit finds the damage, reports it and inverts again
    shards = {f"{folder}/{shard.file}" for shard in index.shards} if index else set()
    return [name for name in names if name not in {*shards, f"{folder}/{INDEX}"}]


def _delete(output: Folder, names: list[str]) -> int:
    """Delete files; how many bytes they had."""
    total = 0
    for name in names:
        total += output.size(name)
        output.remove(name)
    return total
