"""Deletes stored trajectories that no result needs."""

from __future__ import annotations

from cluster.results import read_parts
from pipeline.storage import Folder

KEEP = ("always", "until_done", "never")


def collect_garbage(output: Folder, keep: str) -> dict[str, int]:
    """Delete trajectories, and say which and how many bytes each had.

    A trajectory that no result names belongs to settings that were changed since, or to an
    inversion whose edits were never made. Nothing may be writing to the folder.

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
    removed: dict[str, int] = {}
    for name in output.list("trajectories"):
        key = name.split("/")[1]
        if key not in needed:
            removed[key] = removed.get(key, 0) + output.size(name)
    for key in removed:
        output.remove_folder(f"trajectories/{key}")
    return removed
