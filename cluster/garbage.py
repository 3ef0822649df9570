"""Deletes stored trajectories that no result needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import get_args, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc

from cluster.candidates.unneeded import remove_unneeded
from cluster.job import Job
from cluster.output.attempts import remove, remove_scratch
from cluster.output.lost import few_rows
from cluster.results.compaction import compact
from cluster.results.damaged import Damaged, setter_aside, warn
from cluster.results.parts import read_parts
from pipeline.settings import TrajectorySettings
from pipeline.storage import Folder
from pipeline.trajectories.index import INDEX, TrajectoryDamaged, read_index

FOLDER = "trajectories"
WRITTEN = ("results", "sources", "edits", "masks", "candidates", "prompts")
"""Folders in which a process that is killed leaves a half written file."""
UNFINISHED = re.compile(r"/\.[^/]+\.[0-9a-f]{8}$")
"""Its name, as `Folder.write` has it until it is whole; other hidden files are not ours."""
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


def tidy(
    job: Job,
    *,
    whole: bool = True,
    note: Callable[[str], None] = lambda text: None,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Bring the output folder to the state that a run leaves: no edit twice, no unneeded file.

    Only for the holder of the output folder's lease.

    A run ends with it, and so does one that finds nothing pending: the run before may have been
    killed before it came to this, or the setting `trajectory.keep` may have changed since.

    Args:
        whole: whether the run was of the whole manifest. After one of a part no trajectory is
            deleted here: edits that were left out may need it, and have no result that says so.
            Nor after damaged results were set aside, whose edits the next run makes.
        note: gets a sentence about each damaged file.
        before: called before files are removed; raises where another run may have the folder.
    """
    output, damaged = Folder(job.editing.output), list[Damaged]()
    set_aside = setter_aside(note)

    def on_damaged(one: Damaged) -> None:
        damaged.append(one)
        set_aside(one)

    before()
    remove_scratch(output)
    if output.is_local and few_rows(output):  # object storage has no file before it is whole
        for folder in WRITTEN:
            left = output.list(folder, scratch=True)
            remove(output, [name for name in left if UNFINISHED.search(name)])
    compact(output, job.run, on_damaged)
    if not damaged:
        remove_unneeded(output, before)
    if whole and not damaged and job.editing.trajectory.keep != "always":
        before()
        collect_garbage(output, job.editing.trajectory.keep, before)


def collect_garbage(
    output: Folder, keep: str, before: Callable[[], None] = lambda: None
) -> dict[str, int]:
    """Delete what `find_garbage` finds.

    Args:
        before: as of `delete`.

    Returns:
        The bytes deleted of each trajectory that had any, by its key.
    """
    found = find_garbage(output, keep)
    delete(output, found, before)
    return {one.key: one.size for one in found}


def find_garbage(
    output: Folder,
    keep: str,
    pending: Collection[str] = (),
    on_damaged: Callable[[Damaged], None] = warn,
) -> list[Unneeded]:
    """The trajectories that no result needs, and the needed ones' files that none reads.

    Nothing else may write to the folder meanwhile.

    Args:
        keep: `always` finds the trajectories that no result names: settings changed since, or
            the edits were never made. `until_done` and `never` also find those whose results
            are all `ok`, which only a new prompt would need.
        pending: the ids of videos with edits that are pending and need not have a result yet.
        on_damaged: called with each damaged file of the results. Where there is one, nobody knows
            what it named, so only what killed processes left half written is found.
    """
    damaged: list[Damaged] = []
    named, needed = _named_and_needed(output, keep, pending, damaged.append)
    for one in damaged:
        on_damaged(one)
    temporary = _by_trajectory(output.list(FOLDER, scratch=True))
    stored = _by_trajectory(output.list(FOLDER))
    needed |= stored.keys() if damaged else set()
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


def delete(
    output: Folder, found: Iterable[Unneeded], before: Callable[[], None] = lambda: None
) -> None:
    """Delete files that were found to be unneeded.

    Args:
        before: called before those of each trajectory; another run may have made it again.
    """
    for one in found:
        before()
        for name in one.files:
            output.remove(name)
        if one.whole:
            output.remove_folder(f"{FOLDER}/{one.key}")


def _named_and_needed(
    output: Folder,
    keep: str,
    pending: Collection[str],
    on_damaged: Callable[[Damaged], None],
) -> tuple[set[str], set[str]]:
    """The keys of the trajectories that results name, and of those that are needed."""
    named: set[str] = set()
    needed: set[str] = set()
    videos = pa.array(pending, pa.string())
    for _, table in read_parts(output, ["video_id", "trajectory", "status"], on_damaged):
        named.update(_keys(table))
        if keep != "always":
            is_pending = pc.is_in(table["video_id"], value_set=videos)
            table = table.filter(pc.or_kleene(pc.not_equal(table["status"], "ok"), is_pending))
        needed.update(_keys(table))
    return named, needed


def _keys(table: pa.Table) -> list[str]:
    return pc.unique(table["trajectory"].drop_null()).to_pylist()


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
