"""Commands that write to an output folder do so alone; those that only read go on beside them."""

import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.job import CannotRun, WorkLost
from cluster.output.attempts import settle
from cluster.output.lease import LeaseLost, held, holder_of, runs_stopped_by_signal
from cluster.progress import Counts
from cluster.results.writer import ResultsNotStored
from jobs.cli import EXIT_CANNOT_RUN, EXIT_DONE, app
from jobs.stopping import MESSAGE
from pipeline.errors import ErrorCode, StorageFailed, Trouble, Unreadable
from pipeline.storage import Folder
from tests.jobs.test_stopping import what_a_signal_leaves
from tests.report_results import make_row, write_rows
from tests.small_jobs import a_job_file

__all__ = ["what_a_signal_leaves"]  # a fixture that is used without being named


@pytest.fixture
def output(tmp_path: Path) -> Folder:
    write_rows(str(tmp_path / "out"), [make_row()])
    return Folder(str(tmp_path / "out"))


@pytest.fixture
def job(tmp_path: Path) -> str:
    """A job file whose output folder is new."""
    return a_job_file(tmp_path)


def test_a_run_is_refused_while_another_one_writes(job: str, tmp_path: Path) -> None:
    new = Folder(str(tmp_path / "new"))
    with held(new, "r1"):
        result = CliRunner().invoke(app, ["run", job])
    assert result.exit_code == EXIT_CANNOT_RUN
    assert f"error: output {new.uri}: `retake run` r1 on" in result.output
    assert new.list() == ["lease/000001.json"]


@pytest.mark.parametrize("command", [["gc"], ["verify"]])
def test_a_command_that_changes_a_folder_is_refused_while_a_run_writes(
    output: Folder, command: list[str]
) -> None:
    before = [name for name in output.list() if not name.startswith("lease/")]
    with held(output, "r1"):
        refused = CliRunner().invoke(app, [*command, output.uri])
        looked = CliRunner().invoke(app, [*command, output.uri, "--dry-run"])
    assert refused.exit_code == EXIT_CANNOT_RUN
    assert "`retake run` r1 on" in refused.output
    assert "r1" not in looked.output
    assert [name for name in output.list() if not name.startswith("lease/")] == before


def test_a_report_needs_no_lease(output: Folder) -> None:
    with held(output, "r1"):
        assert CliRunner().invoke(app, ["report", output.uri]).exit_code == EXIT_DONE


def test_a_signal_in_a_run_has_it_drain_and_the_next_run_knows(
    job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, runs = Folder(str(tmp_path / "new")), []

    def run(job: Any, rows: Any, on_progress: Any, *, stop: Any, lease: Any, **_: Any) -> Counts:
        runs.append(job.run)
        on_progress(Counts())
        new.write(f"attempts/00/{job.run}-1.beside", b"{}")
        signal.raise_signal(signal.SIGTERM)
        assert stop.wait(20)
        lease.check()
        runs.append("drained")
        return Counts()

    monkeypatch.setattr("cluster.dataflow.run", run)
    result = CliRunner().invoke(app, ["run", job])
    assert result.exit_code == 143
    assert result.output.endswith(f"{MESSAGE}\n")
    assert runs[1:] == ["drained"]
    assert runs_stopped_by_signal(new) == {runs[0]}
    assert holder_of(new) is None
    assert new.list("attempts") == []  # what the driver itself ended is nobody's fault


def ended_by(error: BaseException | None, monkeypatch: pytest.MonkeyPatch, folder: Folder) -> None:
    """Have a run end so, while a group works on a request."""

    def run(job: Any, *_: Any, **__: Any) -> Counts:
        folder.write(f"attempts/00/{job.run}-1.beside", b"{}")
        if error:
            raise error
        folder.remove(f"attempts/00/{job.run}-1.beside")
        return Counts(edited=7)

    monkeypatch.setattr("cluster.dataflow.run", run)


@pytest.mark.parametrize(
    ("error", "blamed"),
    [
        (ResultsNotStored("results cannot be stored: the disk is full"), False),
        (Unreadable("the manifest has changed"), False),
        (CannotRun("a rank group could not start"), False),
        (StorageFailed("/out", Trouble(ErrorCode.STORAGE_BUSY, "is busy")), False),
        (RuntimeError("a fault of the program"), False),
        (WorkLost("Ray lost all of the job's work 3 times in a row"), True),
        (LeaseLost("another run has taken it over"), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_where_the_driver_ends_groups_at_work_no_row_is_blamed(
    job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, blamed: bool
) -> None:
    new = Folder(str(tmp_path / "new"))
    ended_by(error, monkeypatch, new)
    result = CliRunner().invoke(app, ["run", job])
    assert result.exit_code == EXIT_CANNOT_RUN
    assert len(new.list("attempts")) == blamed
    assert list(settle(new, "r9")) == ["00"] * blamed


def test_a_folder_that_cannot_be_tidied_up_is_a_note_at_the_end_of_a_run(
    job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended_by(None, monkeypatch, Folder(str(tmp_path / "new")))
    (tmp_path / "new/trajectories").mkdir(parents=True)
    loop = tmp_path / "new/trajectories/loop"
    loop.symlink_to(loop)
    result = CliRunner().invoke(app, ["run", job, "--set", "trajectory.keep=until_done"])
    assert result.exit_code == EXIT_DONE, result.output
    text = " ".join(result.output.split())
    assert "could not be tidied up: trajectories: " in text
    assert "All results are stored; the next run tidies up" in text
    assert "edits done 7" in text


def test_a_run_that_is_taken_over_while_it_tidies_up_says_so(
    job: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ended_by(None, monkeypatch, Folder(str(tmp_path / "new")))

    def taken(*_: Any, before: Any, **__: Any) -> None:
        raise LeaseLost("another run has taken it over")

    monkeypatch.setattr("jobs.run.tidy", taken)
    result = CliRunner().invoke(app, ["run", job])
    assert result.exit_code == EXIT_CANNOT_RUN
    assert "error: another run has taken it over" in result.output
