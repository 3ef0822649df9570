"""A run of a part of a manifest, and the plan of a run that is only shown.

`--limit N` takes the first N videos that have something pending, `--only` what is named on the
command line or in a list, such as the one that the gallery writes, `--retry-failed` what failed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.job import Job
from cluster.manifest import ManifestFiles
from cluster.pending.done import NOT_TAKEN, Answered, find_answered
from cluster.pending.rows import PendingRows
from cluster.results.damaged import Damaged, warn
from cluster.results.failed import FailedOf
from cluster.results.parts import read_parts
from cluster.results.schema import OF_THE_MANIFEST
from cluster.selection.entries import Entry, Selection
from cluster.selection.survey import names, survey
from jobs.errors import JobError, counted, nearest
from jobs.manifest.conversion.tables import read_table
from jobs.manifest.files import PARQUET
from pipeline.redaction import say
from pipeline.storage import Folder, explain, open_file

if TYPE_CHECKING:
    from jobs.prepare import Prepared
    from jobs.spec import JobSpec

TABLES = (".csv", ".tsv", ".json", ".jsonl")
LISTS = (*TABLES, *PARQUET, ".txt")
REJECTED = "reject"
NAMES_COMPARED = 20_000
"""A name that is not in the manifest is compared with so many that are."""
SHOWN = 8


@dataclass(frozen=True)
class Part:
    """What of a manifest a run takes.

    Args:
        selection: the edits, by id; all of them by default.
        limit: at most so many videos, the first ones that have something pending.
        failed: only edits that failed before; by default whatever is pending.
    """

    selection: Selection | None = None
    limit: int | None = None
    failed: FailedOf | None = None

    @property
    def has_quarantined(self) -> bool:
        """Whether it gives quarantined edits another chance."""
        return self.failed is not None and self.failed.has_quarantined


def pending_rows(
    prepared: Prepared,
    part: Part | None = None,
    on_damaged: Callable[[Damaged], None] = warn,
    *,
    retry_quarantined: bool = False,
) -> PendingRows:
    """The rows with something pending of a manifest, or of a part of it.

    Args:
        on_damaged: called with each damaged file of the results, which is left out.
        retry_quarantined: edits that an earlier run has quarantined are pending, too.

    Raises:
        JobError: the part names what the manifest does not have; or its column `mask` meant nothing
            when the results were made.
    """
    part = part or Part()
    _refuse_mask_of_before(prepared.job)
    if part.selection:
        refuse_unknown(prepared.job.files, part.selection)
    answered = find_answered(
        prepared.job,
        prepared.scan,
        retry_quarantined=retry_quarantined,
        only=part.failed,
        on_damaged=on_damaged,
    )
    return PendingRows(prepared.job, prepared.scan, answered, part.selection, part.limit)


def _refuse_mask_of_before(job: Job) -> None:
    """Where a manifest's column `mask` was its own, edits that are done would be made again."""
    if "mask" not in job.files.schema.names:
        return
    output, own = Folder(job.editing.output), f"{OF_THE_MANIFEST}mask"
    stored = (table[own] for _, table in read_parts(output, [own], lambda damaged: None))
    given = (table["mask"] for table in job.files.tables(["mask"]))
    if any(map(_has_values, stored)) and any(map(_has_values, given)):
        raise JobError(
            f"{job.manifest}: column 'mask': in the results of {output.uri} it passed through as a "
            "column of your own; by now it names the mask of a row's edits, and those that are "
            "done would be made again with it. Rename the column to keep them; for edits with "
            "masks take another output folder"
        )


def _has_values(column: pa.ChunkedArray) -> bool:
    return bool(column.null_count < len(column))


def part_of(only: Sequence[str], limit: int | None, failed: FailedOf | None = None) -> Part | None:
    """The part of a manifest that `--only`, `--limit` and `--retry-failed` name; None for all.

    Args:
        only: `video_id` or `video_id/edit_id` each, with `*` for any text; or a list: `@file`, or a
            file whose name ends as `LISTS` says.

    Raises:
        JobError, ConvertError: a list that cannot be read, or that names nothing.
    """
    if not only:
        return None if limit is None and failed is None else Part(None, limit, failed)
    entries = [entry for text in only for entry in _entries(text)]
    if not entries:
        raise JobError(
            f"--only {', '.join(only)}: names no video and no edit; expected at least one video_id"
        )
    return Part(Selection(entries), limit, failed)


def dry_run(spec: JobSpec, part: Part | None, *, retry_quarantined: bool = False) -> None:
    """Print what a run would do, without Ray and without a file written."""
    from jobs.display import show_plan
    from jobs.prepare import prepare

    prepared = prepare(spec, write=False)
    show_plan(prepared)
    rows = pending_rows(prepared, part, retry_quarantined=retry_quarantined)
    found = survey(rows)
    refused = ", ".join(f"{code} {count}" for code, count in sorted(found.refused.items()))
    stored = _with_trajectory(Folder(prepared.job.editing.output), found.ids)
    first = ", ".join(found.ids[:SHOWN])
    more = f", and {len(found.ids) - SHOWN} more" if len(found.ids) > SHOWN else ""
    again = "--retry-quarantined gives them another chance"
    left_out = f"{counted(found.quarantined, 'edit')} left out; {again}"
    lines = {
        "pending": f"{counted(found.videos, 'video')}, {counted(found.pending, 'edit')}",
        "videos": first + more,
        "not taken": _not_taken(rows.answered),
        "done": counted(found.done, "edit"),
        "quarantined": left_out if found.quarantined else "",
        "refused": f"{found.refused.total()}" + (f" ({refused})" if refused else ""),
        "to invert": f"{counted(found.videos, 'video')} at most; {stored} with a stored "
        "trajectory, which is used again if it was made with the same settings",
    }
    for name, text in lines.items():
        if text:
            say(f"{name:<15} {text}")
    say("dry run: nothing was started or written")


def _not_taken(answered: Answered) -> str:
    """What a run of failed edits leaves pending; empty where it leaves nothing."""
    count = answered.count(NOT_TAKEN)
    return f"{counted(count, 'edit')}, pending but none of the failed ones" if count else ""


def _entries(text: str) -> Iterator[Entry]:
    """The entries that one value of `--only` stands for."""
    uri = text.removeprefix("@")
    if uri == text and not text.lower().endswith(LISTS):
        yield _entry(text)
        return
    if uri.lower().endswith(PARQUET):
        rows = _parquet_rows(uri)
    elif uri.lower().endswith(TABLES):
        rows = _table_rows(uri)
    else:
        yield from map(_entry, _lines(uri))
        return
    for place, row in rows:
        if str(row.get("pick") or "").strip().lower() == REJECTED:
            continue
        video, edit = (_id(row.get(name)) for name in ("video_id", "edit_id"))
        if video is None:
            raise JobError(f"--only {uri}: {place} has no video_id")
        yield video, edit


def _entry(text: str) -> Entry:
    video, _, edit = text.strip().partition("/")
    if not video or "/" in edit or text.strip().endswith("/"):
        raise JobError(f"--only {text!r}: expected video_id, video_id/edit_id, or @ and a file")
    return video, edit or None


def _id(cell: Any) -> str | None:
    """An id as a table has it; pandas has NaN where there is none."""
    absent = cell is None or (isinstance(cell, float) and math.isnan(cell))
    return None if absent else str(cell).strip() or None


def _table_rows(uri: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    problems: list[str] = []
    for place, row in read_table(uri, problems):
        if not isinstance(row, Mapping):
            raise JobError(f"--only {uri}: {place} is {row!r}; expected a video_id by that name")
        _check_columns(uri, list(row))
        yield place, row
    if problems:
        raise JobError(f"--only {uri}: {'; '.join(problems)}")


def _parquet_rows(uri: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        with open_file(uri) as file:
            table = pq.ParquetFile(file).read()
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise JobError(f"--only {uri}: {_why(error, uri)}") from error
    _check_columns(uri, table.column_names)
    wanted = [name for name in ("video_id", "edit_id", "pick") if name in table.column_names]
    yield from ((f"row {n}", row) for n, row in enumerate(table.select(wanted).to_pylist(), 1))


def _check_columns(uri: str, names: Sequence[str]) -> None:
    if "video_id" not in names:
        found = ", ".join(map(repr, names))
        raise JobError(
            f"--only {uri}: there is no column 'video_id'. It has {found}; expected video_id and, "
            "if any, edit_id and pick"
        )


def _lines(uri: str) -> list[str]:
    try:
        with open_file(uri) as file:
            text = file.read().decode("utf-8-sig")
    except (OSError, ValueError, ImportError) as error:
        raise JobError(f"--only {uri}: {_why(error, uri)}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _why(error: Exception, uri: str) -> str:
    known = isinstance(error, OSError) and not isinstance(error, pa.ArrowException)
    return explain(error, uri).text if known else f"cannot be read: {error}"


def refuse_unknown(files: ManifestFiles, selection: Selection) -> None:
    """Raises a JobError that names each entry of which the manifest has nothing."""
    left = set(selection.entries())
    for video_id, edit_ids in names(files):
        for edit_id in edit_ids:
            left.difference_update(selection.matches(video_id, edit_id))
        if not left:
            return
    known = list(_written(islice(names(files), NAMES_COMPARED)))
    listed = []
    for entry in sorted("/".join(filter(None, entry)) for entry in left)[:SHOWN]:
        near = next((one for one in known if one.startswith(entry)), None)
        near = near or nearest(entry, known[:NAMES_COMPARED], cutoff=0.6)
        listed.append(f"{entry!r}" + (f" (is it {near!r}?)" if near else ""))
    more = f", and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
    few = f"; it has {', '.join(map(repr, known[:3]))}{', ...' * (len(known) > 3)}"
    raise JobError(f"--only: the manifest has no {', '.join(listed)}{more}{few}")


def _written(rows: Iterator[tuple[str, list[str | None]]]) -> Iterator[str]:
    """Each video and each edit as `--only` takes it."""
    for video_id, edit_ids in rows:
        yield video_id
        yield from (f"{video_id}/{edit_id}" for edit_id in edit_ids if edit_id)


def _with_trajectory(output: Folder, video_ids: Sequence[str]) -> int:
    """How many of the videos have a result whose trajectory is stored."""
    stored = {name.split("/")[1] for name in output.list("trajectories") if "/index.json" in name}
    having = {
        video_id
        for _, table in read_parts(output, ["video_id", "trajectory"])
        for video_id, key in zip(
            *(table[name].to_pylist() for name in ("video_id", "trajectory")), strict=True
        )
        if key in stored
    }
    return len(having.intersection(video_ids))
