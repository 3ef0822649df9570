"""Failed edits as a manifest: the job's own one, cut down to them.

A run of it makes the same edits as a run of the job would: the ids stand in it, and each video
resolves to what it did, from which ids, fingerprints and seeds follow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.manifest import BATCH_BYTES, BATCH_ROWS, ManifestFiles
from cluster.pending.fingerprints import Resolved, edit_ids
from cluster.pending.ids import Edits, column_of, edits_of, video_ids
from cluster.pending.scan import scan_manifest
from cluster.results.again import whole_reading
from cluster.results.failed import FailedOf, load_failed
from cluster.results.newest import EDIT, database
from cluster.results.schema import plain_values
from cluster.rows import NO_FILES
from jobs.errors import JobError
from jobs.failures.files import stored_at_end
from jobs.jobfile.paths import absolute
from jobs.manifest.checks import check_manifest
from jobs.manifest.files import would_have
from jobs.manifest.locations import check_target, refuse_overwriting
from jobs.spec import ABOUT, JobSpec, parse_job, read_resolved
from pipeline.locations import parent
from pipeline.storage import Folder

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True)
class Made:
    """How much a manifest of failed edits holds."""

    videos: int
    edits: int


def write_failures_manifest(output: Folder, which: FailedOf, to: str) -> Made:
    """Write the rows of a job's manifest whose edits failed, each with just these edits.

    All columns are those of the job's manifest, with the `video_id`s filled in; a video or mask
    whose relative path leads elsewhere from the new place stands there as it resolves.

    Args:
        to: the file to write, a path or URI; none is written where there is nothing for it.

    Raises:
        JobError, ManifestError, ConvertError: the output names no manifest, it cannot be read, or
            the new one cannot be written.
    """
    files, base, uri = _manifest_of(output)
    target = absolute(to)
    check_target(to, target)
    refuse_overwriting(target, files.uris)
    if would_have(uri, target, output.uri):
        raise JobError(
            f"--manifest {to}: the job's manifest {uri} would have this file, too, and each edit "
            "in it twice. Choose a place outside"
        )
    with database() as found:

        def load(damaged: Collection[str]) -> int:
            return load_failed(found, output, which, without=damaged)

        if not whole_reading(load):
            return Made(0, 0)
        tables = _joined(_failed_parts(found, files, base, parent(target)))
        first = next(tables, None)
        if first is None:
            return Made(0, 0)
        videos, edits = 0, 0
        with (
            stored_at_end(to, "--manifest") as file,
            pq.ParquetWriter(file, first.schema, compression="zstd") as writer,
        ):
            for table in chain([first], tables):
                writer.write_table(table)
                videos += table.num_rows
                edits += len(edits_of(table).values)
        return Made(videos, edits)


def _manifest_of(output: Folder) -> tuple[ManifestFiles, str, str]:
    """Of the last run's manifest the files, what its videos are relative to, and the location."""
    job = read_resolved(output)
    if not isinstance(job.get(ABOUT), dict):
        raise JobError(
            f"{output.uri}: has no job.yaml that a run wrote, which names the job's manifest; give "
            "the folder that the job file calls `output`"
        )
    known = {field.name for field in fields(JobSpec)}
    spec = parse_job({k: v for k, v in job.items() if k in known}, source=f"{output.uri}/job.yaml")
    found = check_manifest(spec.manifest, leave_out=output.uri)
    return found.files, found.base, found.uri


def _failed_parts(
    found: duckdb.DuckDBPyConnection, files: ManifestFiles, base: str, new_base: str
) -> Iterator[pa.Table]:
    """The rows with failed edits, and these alone, of each table of a manifest."""
    old, new = Resolved(base), Resolved(new_base)
    repeated = scan_manifest(files).repeated
    first = 0
    for table in files.tables():
        edits, ids = edits_of(table), video_ids(table)
        failed = _is_failed(found, edits, ids)
        failed &= ~np.isin(edits.rows + first, repeated)  # these have another row's ids
        first += table.num_rows
        if failed.any():
            rows = np.unique(edits.rows[failed])
            values = _with_masks(edits, failed, old, new)
            part = _with_edits(table.take(pa.array(rows)), values, edits.rows[failed], rows)
            columns = {
                name: [_from_new_place(one, old, new) for one in column_of(part, name)]
                for name in ("video", "mask")
                if name in part.column_names
            }
            yield _with_texts(part, {**columns, "video_id": [ids[row] for row in rows]})


def _is_failed(found: duckdb.DuckDBPyConnection, edits: Edits, ids: list[str | None]) -> np.ndarray:
    """Which edits failed, [edits]; of two with one id the first."""
    names = {
        "place": pa.array(np.arange(len(edits.values))),
        "video_id": pa.array([ids[row] for row in edits.rows], pa.string()),
        "edit_id": pa.array([_text(one) for one in edit_ids(edits)], pa.string()),
    }
    found.register("batch", pa.table(names))
    places = found.execute(
        "SELECT min(place) AS place FROM (SELECT place, "
        f"{EDIT} AS edit FROM batch WHERE video_id IS NOT NULL AND edit_id IS NOT NULL) "
        "SEMI JOIN failed USING (edit) GROUP BY edit"
    ).fetchnumpy()["place"]
    found.unregister("batch")
    failed = np.zeros(len(edits.values), bool)
    failed[places] = True
    return failed


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _with_masks(edits: Edits, failed: np.ndarray, old: Resolved, new: Resolved) -> pa.Array:
    """The failed edits, [failed], each with a mask that leads where its own did.

    Where that is another text, the `edit_id` stands there, too: by default it follows from it.
    """
    values = edits.values.filter(pa.array(failed))
    kind = values.type
    if not pa.types.is_struct(kind) or kind.get_field_index("mask") < 0:
        return values
    columns = {f.name: pc.struct_field(values, f.name) for f in kind.fields}
    masks = plain_values(pa.chunked_array([columns["mask"]]))
    moved = [_from_new_place(mask, old, new) for mask in masks]
    given = plain_values(pa.chunked_array([columns["edit_id"]])) if "edit_id" in columns else None
    known = [one for one, wanted in zip(edit_ids(edits), failed, strict=True) if wanted]
    ids = [
        one if mask != before else own
        for own, one, mask, before in zip(
            given or [None] * len(known), known, moved, masks, strict=True
        )
    ]
    for name, texts in (("mask", moved), ("edit_id", ids)):  # of one type in all tables
        columns[name] = pa.array(texts, pa.string())
    return pa.StructArray.from_arrays(list(columns.values()), list(columns), mask=values.is_null())


def _with_edits(
    table: pa.Table, values: pa.Array, places: np.ndarray, rows: np.ndarray
) -> pa.Table:
    """The rows with the failed ones of their edits.

    Args:
        values, places: these, and the row that each stood in.
    """
    counts = np.bincount(places, minlength=int(rows[-1]) + 1)[rows]
    ends = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int64())
    lists = pa.LargeListArray.from_arrays(ends, values)
    place = table.column_names.index("edits")
    kind = table.schema.field("edits").type
    if pa.types.is_fixed_size_list(kind) or values.type != kind.value_type:
        kind = pa.list_(values.type)
    return table.set_column(place, "edits", lists.cast(kind))


def _from_new_place(video: Any, old: Resolved, new: Resolved) -> Any:
    """What leads from the new manifest to the video or mask that the old one names."""
    if not isinstance(video, str) or not video.strip() or video in NO_FILES:
        return video
    whole = old[video]
    return video if new[video] == whole else whole


def _with_texts(table: pa.Table, columns: Mapping[str, list[Any]]) -> pa.Table:
    for name, values in columns.items():
        array = pa.array(values, pa.string())
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, array)
        else:
            table = table.append_column(name, array)
    return table


def _joined(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The rows in tables of about as many as the manifest's own: each is a row group."""
    some: list[pa.Table] = []
    for table in tables:
        some.append(table)
        if sum(t.num_rows for t in some) >= BATCH_ROWS or sum(t.nbytes for t in some) > BATCH_BYTES:
            yield pa.concat_tables(some)
            some = []
    if some:
        yield pa.concat_tables(some)
