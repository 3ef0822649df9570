"""`retake status` and `retake stop` on a real run: while it works, while it ends, and after."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from jobs.cli import EXIT_CANNOT_RUN, EXIT_DONE, EXIT_SOME_FAILED, EXIT_USAGE, app
from jobs.status.record import NAME
from pipeline.storage import Folder
from tests.jobs.status.records import a_status, status_in, until
from tests.jobs.status.test_look import put
from tests.report_results import make_row, write_rows
from tests.test_layers import output_of


def retake(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


@pytest.mark.ray
def test_a_run_is_watched_and_stopped_from_its_output_folder(tmp_path: Path) -> None:
    demo = [sys.executable, "-m", "jobs.cli", "demo", "--set", "inversion.steps=1000"]
    demo += ["--set", "cluster.reconstruction.groups=1", "--set", "cluster.stop_grace_s=1"]
    output = Folder(str(tmp_path / "demo/output"))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*demo, "--output", str(tmp_path / "demo")],
            stdout=log,
            stderr=log,
            env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        )
    step = re.compile(r"(inversion|denoising) step \d+ of 600")
    try:
        until(lambda: step.fullmatch(status_in(output).stages[-1].doing), 240)
        alive = retake("status", output.uri, "--json")
        stopped = retake("stop", output.uri)
        assert (stopped.exit_code, process.wait(60)) == (EXIT_DONE, 143), stopped.output
    finally:
        process.kill()
    assert alive.exit_code == EXIT_DONE
    seen = json.loads(alive.stdout)
    assert (seen["life"], seen["status"]["state"]) == ("alive", "running")
    assert (seen["status"]["pid"], seen["status"]["edits"]) == (process.pid, 6)
    assert "the run has ended after" in stopped.output
    assert "note: asked to stop by " in (tmp_path / "log").read_text()
    after = retake("status", output.uri)
    assert after.exit_code == EXIT_CANNOT_RUN
    assert "stopped before its end; 6 edits left: run the same command again" in " ".join(
        after.output.split()
    )


def test_status_of_an_output_that_no_run_has_written_to(tmp_path: Path) -> None:
    result = retake("status", str(tmp_path / "none"))
    assert (result.exit_code, result.output.strip()) == (
        EXIT_CANNOT_RUN,
        "state  no run is known here; give the folder that the job file calls `output`",
    )
    assert not (tmp_path / "none").exists()


def test_status_of_an_output_of_an_older_version_counts_its_results(tmp_path: Path) -> None:
    failed = make_row(edit_id="b", status="failed", error_code="deadline", error="late")
    write_rows(str(tmp_path), [make_row(edit_id="a"), failed])
    result = retake("status", str(tmp_path))
    assert result.exit_code == EXIT_SOME_FAILED
    assert "results  1 edit made, 1 failed (deadline 1)" in result.output


def test_status_of_a_run_that_ended_is_the_table_of_its_end(tmp_path: Path) -> None:
    ended = a_status(
        state="ended",
        ending="failed edits",
        exit_status=3,
        phase="ended: some edits failed",
        edits=9,
        made=7,
        failed=2,
        failed_by_code={"deadline": 2},
        inverted=3,
    )
    put(Folder(str(tmp_path)), NAME, ended.as_json(), 90)
    result = retake("status", str(tmp_path))
    assert result.exit_code == EXIT_SOME_FAILED
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    for line in ("videos inverted 3", "edits done 7", "edits failed 2", "2 with deadline"):
        assert line in lines


def test_watching_a_run_ends_with_it(tmp_path: Path) -> None:
    put(Folder(str(tmp_path)), NAME, a_status(state="ended", ending="ok").as_json(), 9)
    assert retake("status", str(tmp_path), "--watch").exit_code == EXIT_DONE


def test_status_needs_neither_torch_nor_ray(tmp_path: Path) -> None:
    put(Folder(str(tmp_path)), NAME, a_status(edits=9).as_json(), 9)
    write_rows(str(tmp_path), [make_row()])
    program = (
        "import json, sys; from typer.testing import CliRunner; from jobs.cli import app\n"
        "assert CliRunner().invoke(app, ['status', sys.argv[1]]).exit_code == 0\n"
        "assert CliRunner().invoke(app, ['stop', sys.argv[1]]).exit_code == 1\n"
        "print(json.dumps(sorted({'torch', 'ray', 'diffusers'} & set(sys.modules))))"
    )
    assert output_of(program, str(tmp_path)) == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("status retake-x-01234567 --watch", "`retake logs retake-x-01234567 --follow` follows"),
        ("logs retake-x-01234567 --level error", "--level is for an output folder"),
        ("logs retake-x-01234567 --json", "--json is for an output folder"),
        ("status out --address http://head:8265", "--address is for the id of a submitted job"),
        ("stop out --token-file token", "--token-file is for the id of a submitted job"),
        ("logs out --token-file token", "--token-file is for the id of a submitted job"),
    ],
)
def test_options_that_would_do_nothing_are_refused(arguments: str, part: str) -> None:
    done = retake(*arguments.split())
    assert done.exit_code == EXIT_USAGE
    assert part in done.output


def test_status_for_a_program_is_json_whatever_looks_like_a_secret(tmp_path: Path) -> None:
    error = "-----BEGIN PRIVATE KEY-----s3cret"
    status = a_status(state="ended", ending="failed", error=error, phase="ended with an error")
    Folder(str(tmp_path)).write(NAME, status.as_json())
    done = CliRunner().invoke(app, ["status", str(tmp_path), "--json"])
    assert "s3cret" not in done.output
    assert json.loads(done.output)["status"]["exit_status"] is None


def test_a_status_is_watched_or_for_a_program(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["status", str(tmp_path), "--json", "--watch"])
    assert done.exit_code == 2
    assert "--watch --json: expected one of them" in done.output
