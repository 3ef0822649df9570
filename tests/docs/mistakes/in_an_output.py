"""What happens to an output folder beside a run, for docs/messages.md."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
from typer.testing import CliRunner

from cluster.job import CannotRun
from cluster.output import lease
from cluster.output.holder import Holder
from cluster.output.lease import LeaseLost, held
from cluster.output.lost import before_a_run
from cluster.pending.fingerprints import edit_keys
from cluster.results import writer
from cluster.results.damaged import setter_aside
from cluster.results.parts import read_parts
from cluster.results.schema import SCHEMA
from cluster.results.writer import ResultWriter
from jobs.cli import app
from jobs.prepare import prepare
from jobs.spec import load_job
from pipeline.errors import RowError
from pipeline.storage import Folder, check_file
from tests.docs.mistakes.in_storage import full
from tests.docs.mistakes.on_a_node import raised
from tests.docs.mistakes.provoke import Mistakes, altered, retake
from tests.report_results import make_row, write_rows

PATIENCE_S = 0.05
LONG_AGO = "2025-11-28T10:00:00+00:00"


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


def not_stored(*, note: bool, rescue: str = "full") -> str:
    """Results that a file in the way keeps from their folder.

    Args:
        rescue: the folder for temporary files.
    """
    Path("full").mkdir()
    try:
        Path("full/results").write_text("in the way")
        with (
            patch.object(writer, "FLUSH_S", 0.01),
            patch.object(writer, "PAUSES_S", (0.01, 0.01)),
            patch.object(tempfile, "tempdir", str(Path(rescue).absolute())),
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


def is_gone() -> str:
    """What a run says of one that was killed on this machine."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    return taken_from(pid=ended.pid, started="0")


def is_silent(*, at_first: bool = False) -> str:
    """What a run says of one on another machine that has stopped renewing its lease.

    Args:
        at_first: while it watches whether that one lives.
    """
    said: list[str] = []
    note = taken_from(said.append, host="node-7", renewed=LONG_AGO)
    return said[0] if at_first else note


def taken_from(on_wait: Callable[[str], None] = lambda text: None, **values: Any) -> str:
    """The note of a run that takes the folder over from such a holder."""
    left = replace(Holder.this_process("r1", "retake run", ()), **values)
    folder = Folder(str(Path("left").absolute()))
    folder.write("lease/000001.json", left.as_json())
    os.utime("left/lease/000001.json", (0, 0))
    try:
        patched = patch.object(lease, "RENEW_S", 0.02)
        with patched, held(folder, "r2", on_wait=on_wait) as taken:
            return f"note: {taken.notes[0]}"
    finally:
        shutil.rmtree("left")


def waits() -> str:
    """What a second run says that waits for the folder."""

    def stop(text: str) -> None:
        raise CannotRun(text)

    with held(output(), "r1"):
        second = held(output(), "r2", wait=True, on_wait=stop)
        return raised(second.__enter__, CannotRun)


def taken_over() -> str:
    """What ends a run whose folder another one has taken over."""
    text = "nothing was raised"
    with suppress(LeaseLost), held(output(), "r1") as first:
        other = replace(Holder.this_process("r2", "retake run", ()), host="node-7")
        output().write(f"lease/{first.number + 1:06d}.json", other.as_json())
        first._renew(released=False)
        text = f"error: {raised(first.check, LeaseLost)}"
    shutil.rmtree("kept")  # of the other one, who never ends
    return text


def without_room_for_a_lease() -> str:
    folder = Folder(str(Path("new").absolute()))
    return full(lambda: f"error: {raised(held(folder, 'r1').__enter__, CannotRun)}")


def beside_a_run(*command: str) -> str:
    """What a command says while a run writes to `made`."""
    with held(Folder(str(Path("made").absolute())), "r1"):
        return retake(*command)


# Results


@contextmanager
def results(**values: Any) -> Iterator[str]:
    """An output folder with one edit, whose file is not there."""
    write_rows("hurt", [make_row("clip-1", "red", **values)])
    try:
        yield "hurt"
    finally:
        shutil.rmtree("hurt")


def left_out() -> str:
    """What a command that only reads says of a damaged file."""
    with results() as folder:
        Path(folder, "results/run-2-000000.parquet").write_bytes(b"")
        return printed("report", folder, stderr=True)


def is_lost() -> str:
    """What a run says of an edit whose file was deleted."""
    with results() as folder:
        notes: list[str] = []
        before_a_run(Folder(str(Path(folder).absolute())), "r2", notes.append)
        return f"note: {notes[0]}"


def verified() -> str:
    with results() as folder:
        altered()
        shutil.copytree("altered", f"{folder}/trajectories/stored")
        return printed("verify", folder)


def quarantined(*options: str) -> str:
    """What `retake run` says of an edit that an earlier run has quarantined."""
    prepared = prepare(load_job("job.yaml"))
    table = pq.read_table("m.parquet")
    (video,), (edit,), (fingerprint,) = edit_keys(prepared.job, prepared.job.fingerprint(), table)
    values = {"status": "quarantined", "error_code": "rank_died", "fingerprint": fingerprint}
    write_rows("out", [make_row(video, edit, **values)])
    try:
        lines = printed("run", "job.yaml", *options).splitlines()
        return next(line for line in lines if line.startswith("quarantined"))
    finally:
        shutil.rmtree("out")


def printed(*command: str, stderr: bool = False) -> str:
    done = CliRunner().invoke(app, list(command), prog_name="retake")
    return done.stderr if stderr else done.stdout


def _a_row() -> pa.Table:
    return pa.Table.from_pylist([{"video_id": "v", "edit_id": "a"}], schema=SCHEMA)


OUTPUTS: Mistakes = {
    "a run, while another one writes to the folder": twice,
    "a run, with `--wait`, while another one writes to the folder": waits,
    "a run, after one that was killed on this machine": is_gone,
    "a run, after one on a machine that is gone": is_silent,
    "a run, after one on a machine that is gone, at first": lambda: is_silent(at_first=True),
    "a run that was frozen, while another one took the folder over": taken_over,
    "a run on a full disk": without_room_for_a_lease,
    "`retake gc made`, while a run writes to the folder": lambda: beside_a_run("gc", "made"),
    "a file of the results, emptied": lambda: damaged(lambda _: b""),
    "a file of the results, cut off": lambda: damaged(lambda data: data[:-9]),
    "a file of the results, emptied, and `retake report`": left_out,
    "an edit whose file was deleted": is_lost,
    "an edit that an earlier run has quarantined": quarantined,
    "an edit that an earlier run has quarantined, `--dry-run`": lambda: quarantined("--dry-run"),
    "storage takes no results": lambda: not_stored(note=True),
    "storage took no results for as long as the job waits": lambda: not_stored(note=False),
    "storage took no results, nor did the folder for temporary files": lambda: not_stored(
        note=False, rescue="none"
    ),
    "`retake verify nothing`": lambda: retake("verify", "nothing"),
    "`retake verify`, an edit is gone and a trajectory was altered": verified,
    "a video on a server that takes no connection": lambda: raised(
        lambda: check_file("http://127.0.0.1:1/a.mp4"), RowError
    ),
}
