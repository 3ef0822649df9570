"""Output folders as a job leaves them, with small files of random bytes, and their exports."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from click.testing import Result
from typer.testing import CliRunner

from cluster.results.schema import SCHEMA, to_parquet
from jobs.cli import app
from pipeline.storage import Folder
from tests.report_results import make_row


def make_pairs(
    output: str,
    videos: int,
    edits: int = 1,
    *,
    first: int = 0,
    bytes_each: int = 200,
    **columns: Any,
) -> list[dict]:
    """Rows of edits that are done, with their files; every other one has a mask."""
    folder, chance = Folder(output), random.Random(first)
    rows = []
    for number in range(first, first + videos):
        video = f"clip.{number}"
        source = f"sources/{video}.mp4"
        folder.write(source, chance.randbytes(bytes_each))
        for edit in range(edits):
            name = f"edits/{video}/e{edit}.mp4"
            folder.write(name, data := chance.randbytes(bytes_each + edit))
            mask = f"masks/{video}/e{edit}.mp4" if edit % 2 else None
            if mask:
                folder.write(mask, chance.randbytes(20))
            row = make_row(video, f"e{edit}", output=name, source=source, size_bytes=len(data))
            scores = {"judge": {"follows": edit % 4 + 1}}
            rows.append(row | {"mask": mask, "scores": scores} | columns)
    return rows


def store(output: str, rows: Sequence[dict], run: str = "run-1") -> None:
    """Store rows as one file of the results; columns beside the schema's are the manifest's."""
    other = [name for name in rows[0] if name not in SCHEMA.names]
    extra = pa.Table.from_pylist([{name: row[name] for name in other} for row in rows])
    table = pa.Table.from_pylist([{"run": run} | row | {"run": run} for row in rows], SCHEMA)
    for name in other:
        table = table.append_column(name, extra[name])
    Folder(output).write(f"results/{run}-000000.parquet", to_parquet(table))


def export(output: str | Path, to: str | Path, *options: str, format: str = "webdataset") -> Result:
    """The command, in this process."""
    arguments = ["export", str(output), str(to), "--format", format, *options]
    result = CliRunner().invoke(app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def files_of(to: str | Path) -> dict[str, bytes]:
    """All files of an export, but for those of its lease."""
    folder = Folder(str(to))
    return {
        name: folder.read(name)
        for name, _ in folder.sizes()
        if not name.startswith(".export/lease/")
    }
