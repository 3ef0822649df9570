"""`retake init`: the job file that it writes."""

import re
from pathlib import Path

import fsspec
import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from jobs.errors import JobError
from jobs.jobfile.init import init_job, new_job
from jobs.spec import load_job, parse_job

GIVEN = {"manifest": "manifest.parquet", "output": "out"}


def with_settings(text: str) -> str:
    """The text with its commented settings switched on."""
    return re.sub(r"^( *)#(?=\w)", r"\1", text, flags=re.MULTILINE)


def test_the_command_writes_a_job_with_the_defaults_and_does_not_write_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init"])
    assert (done.exit_code, done.output) == (
        0,
        "job.yaml: set `manifest` and `checkpoint`, then `retake validate job.yaml`\n",
    )
    assert load_job("job.yaml") == parse_job(GIVEN, source="test")
    before = (tmp_path / "job.yaml").read_bytes()
    again = CliRunner().invoke(app, ["init", "job.yaml"])
    assert again.exit_code == 1
    assert "job.yaml: exists, and is never replaced; name another file" in again.output
    assert (tmp_path / "job.yaml").read_bytes() == before


@pytest.mark.parametrize("change", ["as it is", "comments removed", "settings switched on"])
def test_a_new_job_equals_the_defaults(change: str) -> None:
    text = new_job()
    if change == "comments removed":
        text = re.sub(r"#.*", "", text)
    if change == "settings switched on":
        text = with_settings(text)
        assert list(yaml.safe_load(text)["reconstruction"])[:2] == ["start", "guidance_scale"]
    assert parse_job(yaml.safe_load(text), source="test") == parse_job(GIVEN, source="test")


def test_any_one_setting_of_a_new_job_can_be_switched_on_alone() -> None:
    lines = new_job().splitlines()
    settings = [i for i, line in enumerate(lines) if re.match(r" *#\w", line)]
    assert len(settings) > 12
    for i in settings:
        text = "\n".join([*lines[:i], with_settings(lines[i]), *lines[i + 1 :]])
        assert parse_job(yaml.safe_load(text), source="test") == parse_job(GIVEN, source="test")


def test_every_setting_of_a_new_job_has_a_short_reason_from_the_docstrings() -> None:
    lines = new_job().splitlines()
    assert max(map(len, lines)) <= 100
    assert (
        "  # frames a second to resample to; by default every frame of the source is kept" in lines
    )
    reasons = [line for line in lines if re.match(r" *# [^A-Z]", line) and "retake" not in line]
    assert all(len(line.strip()) > 15 for line in reasons)


def test_a_new_job_is_written_to_a_uri_and_its_folder_is_made(tmp_path: Path) -> None:
    init_job("memory://jobs-init/job.yaml")
    with fsspec.open("memory://jobs-init/job.yaml", "rb") as file:
        assert file.read().decode() == new_job("memory://jobs-init/job.yaml")
    init_job(str(tmp_path / "new/job.yaml"))
    assert load_job(str(tmp_path / "new/job.yaml")).manifest == str(
        tmp_path / "new/manifest.parquet"
    )


def test_a_folder_is_no_place_for_a_new_job(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"is a folder; name a file in it, as .*job\.yaml"):
        init_job(str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match="cannot be written"):
        init_job(str(tmp_path / "file/job.yaml"))
