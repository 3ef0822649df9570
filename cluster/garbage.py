"""Deletes stored trajectories that no result needs."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import get_args, get_type_hints

from cluster.job import Job
from cluster.results.compaction import compact
from cluster.results.ledger import read_parts
from pipeline.settings import TrajectorySettings
from pipeline.storage import Folder
from pipeline.trajectories.index import INDEX, TrajectoryDamaged, read_index

FOLDER = "trajectories"
KEEP: tuple[str, ...] = get_args(get_type_hints(TrajectorySettings)["keep"])


@dataclass(frozen=True)
class Unneeded:
    """Files of one trajectory that no result needs.

    Args:
        key: of the trajectory.
        files: their names, and how many bytes they have.
        whole: whether these are all of its files.
        named: whether results name it. They are done, and only a new prompt would need it.
    """

    key: str
    files: tuple[str, ...]
    size: int
    whole: bool
    named: bool


def tidy(job: Job, *, whole: bool = True) -> None:
    """Bring the output folder to the state that a run leaves: no edit twice, no unneeded file.

    A run ends with it, and so does one that finds nothing pending: the run before may have been
    killed before it came to this, or the setting `trajectory.keep` may have changed since.

    Args:
        whole: whether the run was of the whole manifest. After one of a part no trajectory is
            deleted here: edits that were left out may need it, and have no result that says so.
    """
    output = Folder(job.editing.output)
    compact(output, job.run)
    if whole and job.editing.trajectory.keep != "always":
        collect_garbage(output, job.editing.trajectory.keep)


def collect_garbage(output: Folder, keep: str) -> dict[str, int]:
    """Delete what `find_garbage` finds.

    Returns:
        The bytes deleted of each trajectory that had any, by its key.
    """
    found = find_garbage(output, keep)
    delete(output, found)
    return {one.key: one.size for one in found}


def find_garbage(output: Folder, keep: str, pending: Container[str] = ()) -> list[Unneeded]:
    """The trajectories that no result needs, and the needed ones' files that none reads.

    Nothing else may write to the folder meanwhile.

    Args:
        keep: `always` finds the trajectories that no result names: settings changed since, or
            the edits were never made. `until_done` and `never` also find those whose results
            are all `ok`, which only a new prompt would need.
        pending: the ids of videos with edits that are pending and need not have a result yet.
    """
    named, needed = _named_and_needed(output, keep, pending)
    temporary = _by_trajectory(output.list(FOLDER, scratch=True))
    stored = _by_trajectory(output.list(FOLDER))
    found = []
    for key in sorted({*stored, *temporary}):
        names = stored.get(key, [])
        files = _not_in_index(output, key, names) if key in needed else names
        whole = bool(names) and len(files) == len(names)
        files = [*files, *temporary.get(key, ())]
        if files:
            size = sum(output.size(name) for name in files)
            found.append(Unneeded(key, tuple(files), size, whole, key in named - needed))
    return found


def delete(output: Folder, found: Iterable[Unneeded]) -> None:
    """Delete files that were found to be unneeded."""
    for one in found:
        for name in one.files:
            output.remove(name)
        if one.whole:
            output.remove_folder(f"{FOLDER}/{one.key}")


def _named_and_needed(
    output: Folder, keep: str, pending: Container[str]
) -> tuple[set[str], set[str]]:
    """The keys of the trajectories that results name, and of those that are needed."""
    named: set[str] = set()
    needed: set[str] = set()
    for _, table in read_parts(output, ["video_id", "trajectory", "status"]):
        columns = (table[name].to_pylist() for name in ("video_id", "trajectory", "status"))
        for video_id, key, status in zip(*columns, strict=True):
            if key is None:
                continue
            named.add(key)
            if keep == "always" or status != "ok" or video_id in pending:
                needed.add(key)
    return named, needed


def _by_trajectory(names: list[str]) -> dict[str, list[str]]:
    """Names of files, `trajectories/<key>/...`, by the trajectory's key; others are left out."""
    files: dict[str, list[str]] = {}
    for name in names:
        if name.count("/") > 1:
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
