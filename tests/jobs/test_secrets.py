"""Secrets in locations do not stand in what a command prints and writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from jobs import display
from jobs.cli import app
from jobs.errors import JobError
from jobs.manifest.writing import write_manifest
from jobs.prepare import prepare
from jobs.report import write_report
from jobs.run import resolved
from jobs.spec import load_job
from tests.report_results import make_row, read_cards, write_rows

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
    display._print_line(Console(), f"reading {LOCATION}")
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
