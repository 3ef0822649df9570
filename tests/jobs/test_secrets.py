"""Secrets in locations do not stand in what a command prints and writes."""

from __future__ import annotations

import ast
import re
import sys
import threading
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from jobs import cli, display
from jobs.cli import app
from jobs.errors import JobError
from jobs.manifest.writing import write_manifest
from jobs.prepare import prepare
from jobs.report import write_report
from jobs.run import resolved
from jobs.spec import load_job
from tests.pending_rows import pending_of
from tests.report_results import make_row, read_cards, write_rows
from tests.small_jobs import a_job

LOCATION = "https://me:hunter2@localhost:1/m.parquet?X-Amz-Signature=s3cret&a=1"
SAFE = "https://***@localhost:1/m.parquet?X-Amz-Signature=***&a=1"


def test_an_error_shows_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETAKE_STORAGE_PATIENCE_S", "0")
    (tmp_path / "job.yaml").write_text(f"manifest: {LOCATION}\noutput: {tmp_path}/out\n")
    done = CliRunner().invoke(app, ["validate", str(tmp_path / "job.yaml")])
    assert done.exit_code == 1
    assert "localhost:1" in done.output
    assert "hunter2" not in done.output and "s3cret" not in done.output


def test_the_job_that_a_run_writes_holds_no_secret_and_says_so_when_it_is_run(
    tmp_path: Path,
) -> None:
    write_manifest([{"video": "a.mp4", "edits": [{"prompt": "x"}]}], str(tmp_path / "m.parquet"))
    (tmp_path / "job.yaml").write_text("manifest: m.parquet\noutput: out\n")
    prepared = prepare(load_job(str(tmp_path / "job.yaml")))
    object.__setattr__(prepared.spec, "manifest", LOCATION)
    written = resolved(prepared)
    assert yaml.safe_load(written)["manifest"] == SAFE
    (tmp_path / "again.yaml").write_text(written)
    with pytest.raises(JobError, match=r"has \*\*\* where a secret was: .* give the whole"):
        load_job(str(tmp_path / "again.yaml"))


def test_a_printed_line_holds_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    display.SafeConsole().print(f"reading {LOCATION}", soft_wrap=True)
    assert capsys.readouterr().out == f"reading {SAFE}\n"


def test_the_gallery_of_results_that_an_earlier_version_wrote_shows_no_secret(
    tmp_path: Path,
) -> None:
    row = make_row(video=LOCATION) | {"error": f"{LOCATION}: gone", "source_url": LOCATION}
    write_rows(str(tmp_path), [row])
    write_report(str(tmp_path))
    (card,) = read_cards(str(tmp_path))
    assert card["video"] == SAFE
    assert card["edits"][0]["error"] == f"{SAFE}: gone"
    for file in (tmp_path / "report").rglob("*"):
        assert file.is_dir() or b"hunter2" not in file.read_bytes(), file


def test_what_a_user_put_in_a_column_of_their_own_comes_back_as_it_was() -> None:
    rows = [{"video": LOCATION, "edits": [{"prompt": " "}], "source_url": LOCATION}]
    (checked,) = pending_of(a_job(), rows)
    (row,) = checked.refused.to_pylist()
    assert row["source_url"] == LOCATION
    assert row["video"] == SAFE
    assert row["error_code"] == "empty_prompt"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", LOCATION],
        ["run", LOCATION, "--dry-run"],
        ["validate", LOCATION],
        ["init", LOCATION],
        ["manifest", LOCATION, f"{LOCATION}/m.parquet"],
        ["manifest", LOCATION],
        ["report", LOCATION],
        ["metrics", LOCATION],
        ["gc", LOCATION],
        ["verify", LOCATION],
        ["edit", LOCATION, "a cat", "--device", "cpu"],
        ["gc", "out", LOCATION],
        ["gc", "out", "--keep", LOCATION],
        [LOCATION],
    ],
    ids=lambda arguments: " ".join(arguments).replace(LOCATION, "location"),
)
def test_no_command_shows_the_secret_of_a_location_that_it_is_given(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETAKE_STORAGE_PATIENCE_S", "0")
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})
    assert done.exit_code in (1, 2)
    assert done.output
    assert "hunter2" not in done.output and "s3cret" not in done.output


def test_an_unexpected_error_of_a_command_or_of_its_threads_shows_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise RuntimeError(f"{LOCATION} is away")

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    for target in (fails, sys.exit):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    text = capsys.readouterr().err
    assert text.count("Traceback (most recent call last)") == 2
    assert text.count(f"RuntimeError: {SAFE} is away") == 2
    assert "hunter2" not in text


PRINTED_ELSEWHERE = {
    "pipeline/redaction/__init__.py": "here secrets are taken out",
    "jobs/stopping.py": "fixed texts",
    "cluster/submission/entry.py": "names and versions of packages, before ours can be imported",
    "cluster/preflight/node.py": "an answer for the driver, in JSON",
    "jobs/demo/training/__main__.py": "numbers",
}


def test_all_that_is_printed_goes_where_secrets_are_taken_out() -> None:
    root = Path(cli.__file__).parent.parent
    found = set()
    for package in ("pipeline", "cluster", "jobs"):
        for file in (root / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if re.fullmatch(r"print|traceback\.print\w+|Console", called):
                    found.add(file.relative_to(root).as_posix())
    assert found == set(PRINTED_ELSEWHERE)
