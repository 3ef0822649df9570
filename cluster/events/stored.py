"""Where the logs of runs are in an output folder, and how they are read.

logs/<run>/<process>-<number>.jsonl     a segment of the log of one process
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from cluster.events.record import Event, read_line
from pipeline.storage import Folder

FOLDER = "logs"
SUFFIX = ".jsonl"
KEEP_RUNS = 10
"""The logs of so many runs stay when `retake gc` deletes older ones."""
AT_ONCE = 16


def segments(output: Folder) -> dict[str, list[tuple[str, int]]]:
    """The segments of each run, with their bytes; runs in the order of time."""
    found: dict[str, list[tuple[str, int]]] = {}
    for name, size in output.sizes(FOLDER):
        if name.count("/") == 2 and name.endswith(SUFFIX):
            found.setdefault(name.split("/")[1], []).append((name, size))
    return {run: sorted(found[run]) for run in sorted(found)}


def old_segments(output: Folder, keep: int = KEEP_RUNS) -> dict[str, list[tuple[str, int]]]:
    """The segments of the runs before the last ones."""
    found = segments(output)
    return {run: found[run] for run in list(found)[:-keep]}


def read_segments(output: Folder, names: Iterable[str]) -> Iterator[Event]:
    """The events of segments, in the order of each; several are read at a time."""
    left = iter(names)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        # Not all at once, which would hold the whole log of a large run.
        while some := list(islice(left, AT_ONCE)):
            for data in pool.map(output.read, some):
                yield from events_of(data)


def events_of(data: bytes) -> Iterator[Event]:
    """The events of whole lines; lines that are no event are left out."""
    for line in data.split(b"\n"):
        if line and (event := read_line(line.lstrip(b"\0"))):
            yield event
