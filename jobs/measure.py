"""`retake metrics`: numbers that need another model, added to the results of a job.

Each result file is rewritten with more columns: the numbers, and for each model the column that
names it (`clip_model`, `dino_model`). A row that was measured with the same model is left alone, so
a command that was stopped goes on, and one after another run measures only the new edits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cluster.output.lease import held
from cluster.results.parts import part_names, read_parts
from cluster.results.schema import plain_rows, to_parquet
from jobs.errors import JobError, WrongOption
from jobs.spec import absolute, model
from pipeline.errors import RowError
from pipeline.redaction import say
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
    models: Mapping[str, str],
    device: str = "auto",
    on_progress: Callable[[Measured], None] = lambda measured: None,
    *,
    wait: bool = False,
) -> Measured:
    """Measure every edit of an output folder, as the only one that writes to it.

    Args:
        models: the folder or Hub name of each model, `clip` and `dino`.
        device: a torch device; `auto` is a GPU where there is one.
        on_progress: called after each edit.
        wait: for a run that writes to the folder; else it is an error.

    Raises:
        WrongOption: no model was named.
        CannotRun: a run writes to the folder.
        JobError: one cannot be opened, or the folder holds no results.
    """
    if not models:
        raise WrongOption("no model to measure with: give --clip PATH, --dino PATH or both")
    output = Folder(absolute(output_uri))
    if not part_names(output):
        raise JobError(
            f"{output.uri}: no rows in results/*.parquet; run the job first, with the same folder"
        )
    loaded = [_load(kind, model(location), device, output) for kind, location in models.items()]
    measured = Measured()
    with held(output, "", wait=wait, on_wait=say, command="retake metrics") as lease:
        for name, table in read_parts(output):
            _check_columns(name, table, loaded)
            _measure_part(output, name, table, loaded, measured, on_progress)
            lease.check()
    return measured


@dataclass(frozen=True)
class _Model:
    """A model that measures.

    Args:
        kind: `clip` or `dino`.
        location: its folder or Hub name, which the results name it by.
        measure: the numbers of an edit, from its frames and its row.
    """

    kind: str
    location: str
    measure: Measure

    @property
    def name_column(self) -> str:
        return f"{self.kind}_model"

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The columns that it adds to the results."""
        return dict.fromkeys(COLUMNS[self.kind], pa.float64()) | {self.name_column: pa.string()}

    def has_measured(self, row: Row) -> bool:
        return row.get(self.name_column) == self.location


def _measure_part(
    output: Folder,
    name: str,
    table: pa.Table,
    models: Sequence[_Model],
    measured: Measured,
    on_progress: Callable[[Measured], None],
) -> None:
    """Measure what is pending in one file; store now and then, so that a stop loses little."""
    rows = plain_rows(table)
    saved, changed = time.monotonic(), False
    for row in rows:
        if row["status"] != "ok":
            continue
        pending = [model for model in models if not model.has_measured(row)]
        if not pending:
            measured.before += 1
            continue
        try:
            frames = _read(output, row["output"], row)
            for one in pending:
                row |= one.measure(frames, row) | {one.name_column: one.location}
            measured.edits += 1
            changed = True
        except (RowError, OSError) as error:
            measured.unreadable += 1
            measured.reason = measured.reason or str(error)
        on_progress(measured)
        if changed and time.monotonic() - saved > SAVE_EVERY_S:
            output.write(name, to_parquet(_with_columns(table, rows, models)))
            saved, changed = time.monotonic(), False
    if changed:
        output.write(name, to_parquet(_with_columns(table, rows, models)))


def _with_columns(table: pa.Table, rows: list[Row], models: Sequence[_Model]) -> pa.Table:
    for one in models:
        for name, dtype in one.columns.items():
            values = pa.array([row.get(name) for row in rows], dtype)
            if name in table.column_names:
                table = table.set_column(table.column_names.index(name), name, values)
            else:
                table = table.append_column(name, values)
    return table


def _check_columns(name: str, table: pa.Table, models: Sequence[_Model]) -> None:
    """Refuse to write over a column that came with the manifest."""
    for one in models:
        there = one.columns.keys() & {*table.column_names}
        if there and there != one.columns.keys():  # what a model adds, it adds together
            raise JobError(
                f"{name}: has a column {min(there)!r} that came with the manifest; rename it there "
                "and run the job again"
            )


def _load(kind: str, location: str, device: str, output: Folder) -> _Model:
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
            return _Model(kind, location, lambda frames, row: clip.measure(frames, row["prompt"]))
        dino = ImageModel.load(location, device)
    except WrongModel as error:
        raise JobError(f"--{kind} {error}") from error
    return _Model(
        kind,
        location,
        lambda frames, row: dino.measure(frames, _read(output, row["source"], row)),
    )


def _read(output: Folder, name: str, row: Row) -> torch.Tensor:
    """The frames of a clip that the job wrote, uint8 [F, H, W, 3]."""
    from pipeline.media.decoding import read_clip

    with output.open(name) as file:
        clip = read_clip(
            file, name=name, height=row["height"], width=row["width"], frames=row["frames"]
        )
    return clip.frames
