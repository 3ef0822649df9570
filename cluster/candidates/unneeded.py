"""Deletes the files of candidates that no result names: the best is the edit, the others go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cluster.candidates.made import FOLDER
from cluster.results.compaction import find_current, read_current
from cluster.results.schema import plain_rows
from pipeline.storage import Folder

COLUMNS = ("output", "mask", "candidates")


def remove_unneeded(output: Folder, before: Callable[[], None] = lambda: None) -> int:
    """Delete the files of candidates that no newest row names; how many there were.

    A row that waits for its scores names all of its candidates, and one whose best was chosen those
    that are kept. What a killed group left is named by none. Only for the holder of the output
    folder's lease, while nothing else writes, and where no file of the results is damaged.

    Args:
        before: called before files are removed; raises where another run may have the folder.
    """
    stored = output.list(FOLDER)
    if not stored:
        return 0
    needed: set[str] = set()
    for table in read_current(output, find_current(output), lambda field: field.name in COLUMNS):
        for row in plain_rows(table):
            needed.update(_named(row))
    unneeded = [name for name in stored if name not in needed]
    if unneeded:
        before()
    for name in unneeded:
        output.remove(name)
    if len(unneeded) == len(stored):
        output.remove_folder(FOLDER)
    return len(unneeded)


def _named(row: Mapping[str, Any]) -> Iterator[str]:
    """The files of candidates that a row names."""
    for one in (row, *(row.get("candidates") or ())):
        for name in (one.get("output"), one.get("mask")):
            if name and name.startswith(f"{FOLDER}/"):
                yield name
