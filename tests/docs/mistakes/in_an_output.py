"""What happens to an output folder beside a run, for docs/messages.md."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cluster.job import CannotRun
from cluster.output.lease import held
from cluster.results import writer
from cluster.results.damaged import setter_aside
from cluster.results.parts import read_parts
from cluster.results.writer import ResultWriter
from pipeline.errors import RowError
from pipeline.storage import Folder, check_file
from tests.docs.mistakes.on_a_node import raised
from tests.docs.mistakes.provoke import Mistakes, retake
from tests.report_results import make_row, write_rows

PATIENCE_S = 0.05


def output() -> Folder:
    return Folder(str(Path("kept").absolute()))


def twice() -> str:
    """A second writer of a folder."""
    with held(output(), "r1"):
        return raised(lambda: held(output(), "r2").__enter__(), CannotRun)


def damaged(data: Callable[[bytes], bytes]) -> str:
    """What a run says of a file of the results."""
    write_rows("hurt", [make_row("clip-1", "red")])
    try:
        file = next(Path("hurt/results").glob("*.parquet"))
        file.write_bytes(data(file.read_bytes()))
        notes: list[str] = []
        list(
            read_parts(Folder(str(Path("hurt").absolute())), on_damaged=setter_aside(notes.append))
        )
        return notes[0]
    finally:
        shutil.rmtree("hurt")


def not_stored(*, note: bool) -> str:
    """Results that a file in the way keeps from their folder."""
    Path("full").mkdir()
    try:
        Path("full/results").write_text("in the way")
        with (
            patch.object(writer, "FLUSH_S", 0.01),
            patch.object(writer, "PAUSES_S", (0.01, 0.01)),
            patch.object(tempfile, "tempdir", str(Path("full").absolute())),
        ):
            patience_s = 600.0 if note else PATIENCE_S
            results = ResultWriter(Folder(str(Path("full").absolute())), "r", patience_s)
            results.add(_a_row())
            try:
                while note and not results.note:
                    results.check()
                return str(results.note) if note else raised(results.close, CannotRun)
            finally:
                results.hurry(0.0)
                with suppress(CannotRun):
                    results.close()
    finally:
        shutil.rmtree("full")


def _a_row() -> Any:
    import pyarrow as pa

    from cluster.results.schema import SCHEMA

    return pa.Table.from_pylist([{"video_id": "v", "edit_id": "a"}], schema=SCHEMA)


OUTPUTS: Mistakes = {
    "a run, while another one writes to the folder": twice,
    "a file of the results, emptied": lambda: damaged(lambda _: b""),
    "a file of the results, cut off": lambda: damaged(lambda data: data[:-9]),
    "storage takes no results": lambda: not_stored(note=True),
    "storage took no results for as long as the job waits": lambda: not_stored(note=False),
    "`retake verify nothing`": lambda: retake("verify", "nothing"),
    "a video on a server that takes no connection": lambda: raised(
        lambda: check_file("http://127.0.0.1:1/a.mp4"), RowError
    ),
}
