"""`retake metrics`: numbers that need another model, added to the results of a job.

Each result file is rewritten with more columns: the numbers, and for each model the column that
names it (`clip_model`, `dino_model`). A row that was measured with the same model is left alone, so
a command that was stopped goes on, and one after another run measures only the new edits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cluster.results.ledger import FOLDER, read_parts
from cluster.results.schema import to_parquet
from jobs.spec import JobError, absolute, model
from pipeline.errors import RowError
from pipeline.storage import Folder

if TYPE_CHECKING:
    import torch

SAVE_EVERY_S = 60.0
COLUMNS = {"clip": ("clip_text", "clip_frames"), "dino": ("dino_source",)}

Row = dict[str, Any]
Measure = Callable[["torch.Tensor", Row], dict[str, float]]


@dataclass
class Measured:
    """What a command did: edits measured, left as they were, and unreadable, with one reason."""

    edits: int = 0
    before: int = 0
    unreadable: int = 0
    reason: str = ""


def measure_results(
    output_uri: str,
    models: dict[str, str],
    device: str = "auto",
    report: Callable[[Measured], None] = lambda measured: None,
) -> Measured:
    """Measure every edit of an output folder. Nothing else may be writing to it.

    Args:
        models: the folder or Hub name of each model, `clip` and `dino`.
        device: a torch device; `auto` is a GPU where there is one.
        report: called after each edit.

    Raises:
        JobError: no model was named, one cannot be opened, or the folder holds no results.
    """
    if not models:
        raise JobError("no model to measure with: give --clip PATH, --dino PATH or both")
    output = Folder(absolute(output_uri))
    if not any(name.endswith(".parquet") for name in output.list(FOLDER)):
        raise JobError(
            f"{output.uri}: no rows in results/*.parquet; run the job first, with the same folder"
        )
    models = {kind: model(location) for kind, location in models.items()}
    measures = {kind: _load(kind, models[kind], device, output) for kind in models}
    done = Measured()
    for name, table in read_parts(output):
        _check_columns(name, table, models)
        _measure_part(output, name, table, models, measures, done, report)
    return done


def _measure_part(
    output: Folder,
    name: str,
    table: pa.Table,
    models: dict[str, str],
    measures: dict[str, Measure],
    done: Measured,
    report: Callable[[Measured], None],
) -> None:
    """Measure what one file owes, and store it now and then: what was measured is not lost."""
    rows = table.to_pylist()
    saved, changed = time.monotonic(), False
    for row in rows:
        owed = [kind for kind in models if row.get(f"{kind}_model") != models[kind]]
        if row["status"] != "ok":
            continue
        if not owed:
            done.before += 1
            continue
        try:
            frames = _read(output, row["output"], row)
            for kind in owed:
                row |= measures[kind](frames, row) | {f"{kind}_model": models[kind]}
            done.edits += 1
            changed = True
        except (RowError, OSError) as error:
            done.unreadable += 1
            done.reason = done.reason or str(error)
        report(done)
        if changed and time.monotonic() - saved > SAVE_EVERY_S:
            output.write(name, to_parquet(_with_columns(table, rows, models)))
            saved, changed = time.monotonic(), False
    if changed:
        output.write(name, to_parquet(_with_columns(table, rows, models)))


def _with_columns(table: pa.Table, rows: list[Row], kinds: dict[str, str]) -> pa.Table:
    for kind in kinds:
        fields = [(name, pa.float64()) for name in COLUMNS[kind]]
        for name, dtype in [*fields, (f"{kind}_model", pa.string())]:
            values = pa.array([row.get(name) for row in rows], dtype)
            if name in table.column_names:
                table = table.set_column(table.column_names.index(name), name, values)
            else:
                table = table.append_column(name, values)
    return table


def _check_columns(name: str, table: pa.Table, kinds: Iterable[str]) -> None:
    """Refuse to write over a column that came with the manifest."""
    for kind in kinds:
        added = {*COLUMNS[kind], f"{kind}_model"}
        for column in added & {*table.column_names}:
            if not added <= {*table.column_names}:  # what this command adds, it adds together
                raise JobError(
                    f"{name}: has a column {column!r} that came with the manifest; rename it there "
                    "and run the job again"
                )


def _load(kind: str, location: str, device: str, output: Folder) -> Measure:
    import torch
    from transformers.utils import logging

    from pipeline.quality.similarity import ClipModel, ImageModel, WrongModel

    logging.disable_progress_bar()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise JobError(f"--device {device}: {error}") from error
    try:
        if kind == "clip":
            clip = ClipModel.load(location, device)
            return lambda frames, row: clip.measure(frames, row["prompt"])
        dino = ImageModel.load(location, device)
    except WrongModel as error:
        raise JobError(f"--{kind} {error}") from error
    return lambda frames, row: dino.measure(frames, _read(output, row["source"], row))


def _read(output: Folder, name: str, row: Row) -> torch.Tensor:
    """The frames of a clip that the job wrote, uint8 [F, H, W, 3]."""
    from pipeline.media.decoding import read_clip

    with output.open(name) as file:
        clip = read_clip(
            file, name=name, height=row["height"], width=row["width"], frames=row["frames"]
        )
    return clip.frames
