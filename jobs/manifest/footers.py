"""The Parquet files of a manifest, and what their footers tell; no row is read."""

from __future__ import annotations

import posixpath
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import ManifestError
from pipeline.storage import join, open_file, split


@dataclass(frozen=True)
class Footer:
    """What the end of a Parquet file tells of it.

    Args:
        schema: a `pyarrow.Schema`; None where the file is damaged.
        edits: how many have a prompt; None where the writer left out the statistics.
        damage: why it cannot be read.
    """

    uri: str
    schema: Any = None
    rows: int = 0
    edits: int | None = None
    damage: str | None = None


def read_footers(uri: str, leave_out: str | None) -> list[Footer]:
    """The footers of a manifest's files, in order. Arguments and errors as `check_manifest` has."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(_read_footer, _find_files(uri, leave_out)))


def refusal(uri: str, problems: list[str], done: str = "used") -> ManifestError:
    listed = "".join(f"\n  - {problem}" for problem in problems)
    return ManifestError(f"the manifest {uri} cannot be {done}:{listed}")


def _find_files(uri: str, leave_out: str | None) -> list[str]:
    try:
        fs, path = split(uri)
        if fs.isfile(path):
            return [uri if "::" in uri else join(fs, path)]
        there = fs.exists(path)
        found = sorted(fs.find(path)) if there else []
    except ImportError as error:
        hint = f"{error}; the extras retake[s3] and retake[gcs] install what S3 and GCS need"
        raise refusal(uri, [hint]) from error
    except Exception as error:  # each storage has its own kinds of failure
        raise refusal(uri, [f"it cannot be read: {type(error).__name__}: {error}"]) from error
    if not there:
        raise refusal(uri, ["there is no such file or folder; expected a Parquet file"])
    if leave_out:
        found = _outside(found, path, split(leave_out)[1])
    paths = [path for path in found if path.endswith((".parquet", ".pq"))]
    if not paths:
        names = ", ".join(posixpath.basename(path) for path in found[:3]) or "nothing"
        raise refusal(uri, [f"the folder has no *.parquet file; it has {names}"])
    return [join(fs, path) for path in paths]


def _outside(found: list[str], manifest: str, output: str) -> list[str]:
    """The files that are not in a job's output, where that lies in the manifest's folder."""
    if output == manifest:
        output += "/results"
    inside = f"{output}/".startswith(f"{manifest}/")
    return [path for path in found if not (inside and path.startswith(f"{output}/"))]


def _read_footer(uri: str) -> Footer:
    head = b""
    try:
        with open_file(uri) as file:
            head = file.read(4)
            file.seek(0)
            parquet = pq.ParquetFile(file)
            rows, edits = parquet.metadata.num_rows, _count_edits(parquet.metadata)
            return Footer(uri, parquet.schema_arrow, rows, edits)
    except pa.ArrowException as error:
        damage = f"the Parquet file is truncated or damaged: {error}"
        if not head:
            damage = "the file is empty (0 bytes); expected Parquet"
        elif head != b"PAR1":
            damage = f"the file is not Parquet: it begins with {head!r}; `retake manifest` makes "
            damage += "a manifest from CSV, JSON or a folder of videos"
    except Exception as error:  # each storage has its own kinds of failure
        damage = f"the file cannot be read: {type(error).__name__}: {error}"
    return Footer(uri, damage=damage)


def _count_edits(metadata: pq.FileMetaData) -> int | None:
    """The prompts that are not null, from the statistics of their column."""
    total = 0
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            path = chunk.path_in_schema.split(".")  # edits.list.element.prompt
            if (path[0], path[-1]) == ("edits", "prompt"):
                if chunk.statistics is None:
                    return None
                total += chunk.statistics.num_values
    return total
