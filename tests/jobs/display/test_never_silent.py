"""Whatever a run does, and wherever it hangs, a line says so every so often."""

from __future__ import annotations

import importlib
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.output.lease import held
from jobs.display import SafeConsole, ticker
from jobs.display.ticker import LINE_EVERY_S
from pipeline.storage import Folder
from tests.in_process import run_in_process
from tests.jobs.test_run import a_row, a_video, run


class Output(io.StringIO):
    """What a run prints without a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._more = threading.Condition()

    def write(self, text: str) -> int:
        with self._more:
            written = super().write(text)
            self._more.notify_all()
        return written

    def lines(self) -> list[str]:
        return self.getvalue().splitlines()

    def next(self, number: int) -> list[str]:
        """The lines that are printed from now on, once there are so many."""
        with self._more:
            before = len(self.lines())
            assert self._more.wait_for(lambda: len(self.lines()) >= before + number, 30), "silence"
            return self.lines()[before:]


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Output:
    made = Output()
    run_in_process(monkeypatch)
    monkeypatch.setattr(ticker, "LINE_EVERY_S", 0.02)
    monkeypatch.setattr("jobs.run.console_of_a_run", lambda: SafeConsole(file=made, width=100))
    return made


def test_a_line_comes_more_often_than_every_half_minute() -> None:
    assert LINE_EVERY_S <= 25


@pytest.mark.parametrize(
    ("place", "phase"),
    [
        ("jobs.run.prepare", "checking the job, its manifest and its checkpoint"),
        ("jobs.run.settle", "comparing the manifest with the results"),
        ("cluster.dataflow.connected", "starting Ray, 1 edit to make"),
        ("cluster.dataflow.preflight", "checking whether every node can work"),
        ("cluster.driver.wave.Feed.take", "checking rows of the manifest"),
        ("cluster.stages.first_prompts.find_missing", "checking rows of the manifest"),
        ("tests.in_process.Group.ready", "loading: 0 of 2 groups, waiting for prompts and editing"),
        # Here stages follow each other, and the first one may have said what it does.
        ("tests.in_process.Group.request", ("loading: ", "encoding ")),
        ("cluster.results.writer.ResultWriter.close", "storing the last results: 1 of 1 edit"),
        ("jobs.run.tidy", "tidying up"),
    ],
)
def test_a_run_that_hangs_says_where(
    output: Output,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    place: str,
    phase: str | tuple[str, ...],
) -> None:
    owner, _, name = place.rpartition(".")
    try:
        where: Any = importlib.import_module(owner)
    except ModuleNotFoundError:
        module, _, class_ = owner.rpartition(".")
        where = getattr(importlib.import_module(module), class_)
    works, seen = getattr(where, name), list[str]()

    def hangs(*arguments: Any, **options: Any) -> Any:
        if not seen:
            seen.extend(output.next(3))
        return works(*arguments, **options)

    monkeypatch.setattr(where, name, hangs)
    assert run(tmp_path, [a_row(a_video(tmp_path / "a.mp4"), "red", video_id="a")]) == 0
    assert seen
    assert [line for line in seen if not line.startswith(phase)] == []


def test_a_run_that_waits_for_another_one_says_so(output: Output, tmp_path: Path) -> None:
    with released_later(output, Folder(f"{tmp_path}/out")) as seen:
        rows = [a_row(a_video(tmp_path / "a.mp4"), "red", video_id="a")]
        assert run(tmp_path, rows, options=("--wait",)) == 0
    assert all(line.startswith("waiting for `retake run` 2026") for line in seen)


@contextmanager
def released_later(output: Output, folder: Folder) -> Iterator[list[str]]:
    """Another run has the folder until lines say that it is waited for."""
    seen: list[str] = []
    with held(folder, "20261128T100000.000000") as lease:

        def release() -> None:
            while not any(line.startswith("waiting") for line in output.next(1)):
                pass
            seen.extend(output.next(3))
            lease.release()

        thread = threading.Thread(target=release)
        thread.start()
        yield seen
        thread.join(30)
