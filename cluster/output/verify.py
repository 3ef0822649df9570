"""All that an output folder holds, checked: results, edits, trajectories."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from cluster.events.stored import segments
from cluster.output.lost import Lost, find_lost
from cluster.results.compaction import find_current, read_current
from cluster.results.damaged import Damaged
from cluster.results.parts import FOLDER, LISTINGS, PartGone, read_parts
from pipeline.errors import RowError, Unreadable
from pipeline.storage import Folder, explain
from pipeline.trajectories.checking import check_trajectory
from pipeline.trajectories.index import INDEX, TrajectoryDamaged

TRAJECTORIES = "trajectories"
AT_ONCE = 16
COLUMNS = ("output", "mask", "status", "frames", "height", "width")


@dataclass
class Verified:
    """What was looked at, and what is wrong.

    Args:
        edits: that are done.
        trajectories: that are committed, and their bytes.
        logs: runs that have a log, and the bytes of all. A damaged log costs nothing, so its lines
            are not read.
        results: damaged files of results.
        lost: edits whose file is not what the results say, or cannot be decoded.
        damaged: of trajectories; the text names one and says why.
    """

    edits: int = 0
    trajectories: int = 0
    bytes: int = 0
    logs: int = 0
    log_bytes: int = 0
    results: list[Damaged] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    @property
    def problems(self) -> int:
        return len(self.results) + len(self.lost) + len(self.damaged)


def verify(
    output: Folder, *, decode: bool = False, on_progress: Callable[[str], None] = lambda text: None
) -> Verified:
    """Check an output folder, and change nothing.

    Args:
        decode: read each edit to its end, as a player does. Costs torch.
        on_progress: called with what is looked at.

    Raises:
        Unreadable: storage does not give a file.
    """
    found = Verified()
    on_progress("reading the results")
    for _ in read_parts(output, None, found.results.append):  # all columns, unlike other readers
        pass
    on_progress("listing the edits")
    damaged = [one.name for one in found.results]
    found.lost = find_lost(output, without=damaged)
    lost = {one.output for one in found.lost}
    rows = (row for row in _done(output, damaged) if row["output"] not in lost)
    for row, why in _side_by_side(rows, lambda row: _undecodable(output, row) if decode else None):
        found.edits += 1
        if why:
            found.lost.append(Lost(row["output"], why))
        if decode:
            on_progress(f"{found.edits} edits decoded")
    found.edits += len(lost)
    _check_trajectories(output, found, on_progress)
    logs = segments(output)
    found.logs, found.log_bytes = len(logs), sum(n for files in logs.values() for _, n in files)
    return found


def _check_trajectories(
    output: Folder, found: Verified, on_progress: Callable[[str], None]
) -> None:
    names = (name for name, _ in output.sizes(TRAJECTORIES))
    keys = (name.split("/")[1] for name in names if name.endswith(f"/{INDEX}"))

    def check(key: str) -> int | str:
        try:
            return check_trajectory(output.child(f"{TRAJECTORIES}/{key}"), key) or 0
        except TrajectoryDamaged as error:
            return str(error)
        except Exception as error:  # each storage has its own kinds of failure
            where = f"{output.uri}/{TRAJECTORIES}/{key}"
            raise Unreadable(f"{where}: {explain(error, where).text}") from error

    for _, answer in _side_by_side(keys, check):
        found.trajectories += 1
        if isinstance(answer, str):
            found.damaged.append(answer)
        else:
            found.bytes += answer
        on_progress(f"{found.trajectories} trajectories read")


def _done(output: Folder, damaged: Collection[str]) -> Iterator[dict[str, Any]]:
    """The newest row of each edit that is done.

    All are read before the first is given: a run beside this puts files together, and to decode
    edits takes long.
    """
    for table in _read_whole(output, damaged):
        yield from (row for row in table.to_pylist() if row["status"] == "ok" and row["output"])


def _read_whole(output: Folder, damaged: Collection[str]) -> list[pa.Table]:
    for _ in range(LISTINGS):
        current = find_current(output, without=damaged)
        with suppress(PartGone):  # put together just now: found again
            return list(read_current(output, current, lambda column: column.name in COLUMNS))
    raise Unreadable(f"results {output.uri}/{FOLDER}: its files change too fast to be read")


def _undecodable(output: Folder, row: dict[str, Any]) -> str | None:
    """Why an edit, or its mask, is no clip of the size that its row says; None where both are."""
    why = _no_clip(output, row, row["output"])
    if why is None and (mask := row.get("mask")):
        why = _no_clip(output, row, mask)
        why = why and f"has lost its mask: {mask} {why}"
    return why


def _no_clip(output: Folder, row: dict[str, Any], name: str) -> str | None:
    """Why a file is no clip of the size that a row says; None where it is one."""
    from pipeline.media.decoding import read_clip

    size = {key: row[key] for key in ("height", "width", "frames")}
    try:
        with output.open(name) as file:
            clip = read_clip(file, name=name, **size)
    except RowError as error:
        return f"cannot be decoded: {error.message}"
    except Exception as error:  # each storage has its own kinds of failure
        where = f"{output.uri}/{name}"
        raise Unreadable(f"{where}: {explain(error, where).text}") from error
    if len(clip.frames) != row["frames"]:
        return f"has {len(clip.frames)} frames; its row says {row['frames']}"
    return None


def _side_by_side(items: Iterator[Any], do: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
    """Each item with what `do` gives for it, in order; some are done ahead."""
    ahead: list[tuple[Any, Future[Any]]] = []
    with ThreadPoolExecutor(min(AT_ONCE, 2 * (os.cpu_count() or 1))) as pool:
        for item in items:
            ahead.append((item, pool.submit(do, item)))
            if len(ahead) > AT_ONCE:
                done, answer = ahead.pop(0)
                yield done, answer.result()
        for done, answer in ahead:
            yield done, answer.result()
