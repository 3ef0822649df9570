"""Deletes stored trajectories that no result needs."""

from __future__ import annotations

from cluster.job import Job
from cluster.results.ledger import compact, read_parts
from pipeline.storage import Folder
from pipeline.trajectories.index import INDEX, TrajectoryDamaged, read_index

KEEP = ("always", "until_done", "never")


def tidy(job: Job) -> None:
    """Bring the output folder to the state that a run leaves: nothing twice, nothing unwanted.

    A run ends with it, and so does one that finds nothing owed: the one before it may have been
    killed before it came to this, or have kept what is not to be kept now.
    """
    output = Folder(job.editing.output)
    compact(output, job.run)
    if job.editing.trajectory.keep != "always":
        collect_garbage(output, job.editing.trajectory.keep)


def collect_garbage(output: Folder, keep: str) -> dict[str, int]:
    """Delete what no result needs of the trajectories, and say of which and how many bytes.

    A trajectory that no result names belongs to settings that were changed since, or to an
    inversion whose edits were never made. Of the others those shards go that the index does not
    name: a killed group left them, or a second writer. Nothing may be writing to the folder.

    Args:
        keep: `always` deletes only such; `until_done` and `never` also those whose results are all
            `ok`, which only a later prompt would want.
    """
    named: set[str] = set()
    unfinished: set[str] = set()
    for _, table in read_parts(output, ["trajectory", "status"]):
        for row in table.to_pylist():
            named.add(row["trajectory"])
            if row["status"] != "ok":
                unfinished.add(row["trajectory"])
    needed = named if keep == "always" else unfinished
    files: dict[str, list[str]] = {}
    for name in output.list("trajectories"):
        files.setdefault(name.split("/")[1], []).append(name)
    removed: dict[str, int] = {}
    for key, names in files.items():
        unwanted = _unnamed(output, key, names) if key in needed else names
        if unwanted:
            removed[key] = sum(output.size(name) for name in unwanted)
        if unwanted == names:
            output.remove_folder(f"trajectories/{key}")
            continue
        for name in unwanted:
            output.remove(name)
    for name in output.list("trajectories", scratch=True):
        key = name.split("/")[1]
        removed[key] = removed.get(key, 0) + output.size(name)
        output.remove(name)
    return removed


def _unnamed(output: Folder, key: str, names: list[str]) -> list[str]:
    """The shards of a trajectory that its index does not name; none where it cannot be read."""
    folder = f"trajectories/{key}"
    try:
        index = read_index(output.child(folder), key)
    except TrajectoryDamaged:
        return []  # the next edit finds the damage, says so and inverts again
    shards = {f"{folder}/{shard.file}" for shard in index.shards} if index else set()
    return [name for name in names if name not in {*shards, f"{folder}/{INDEX}"}]
