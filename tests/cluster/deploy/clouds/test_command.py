"""`retake deploy` for clouds, as a user types it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from jobs.cli import EXIT_CANNOT_RUN, EXIT_DONE, app

FILES = {
    "aws": {"cluster.yaml", "iam.sh", "run.sh"},
    "gcp": {"cluster.yaml", "iam.sh", "run.sh"},
    "skypilot": {"sky.yaml", "launch.sh"},
}


def deploy(folder: Path, *arguments: str) -> int:
    places = {"manifest": "s3://in/manifest.parquet", "output": "s3://out/edits"}
    job = {**places, "checkpoint": "zai-org/CogVideoX-5b"}
    (folder / "horses.yaml").write_text(yaml.safe_dump(job))
    target, *options = arguments
    to = ["--to", str(folder / "files")]
    words = ["deploy", target, str(folder / "horses.yaml"), *to, *options]
    try:
        return app(words, standalone_mode=False)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["aws", "--gpu-kind", "H100", "--nodes", "2", "--spot"],
        ["gcp", "--gpu-kind", "L4", "--nodes", "4", "--spot", "--project", "video-edits"],
        ["skypilot", "--gpu-kind", "H100", "--nodes", "2", "--spot", "--zone", "aws/us-east-1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_files_of_a_cloud_are_written_and_its_scripts_can_be_started(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy(tmp_path, *arguments) == EXIT_DONE
    folder = tmp_path / "files"
    assert {file.name for file in folder.iterdir()} == {
        *FILES[arguments[0]],
        "job.yaml",
        "constraints.txt",
    }
    assert all(os.access(script, os.X_OK) for script in folder.glob("*.sh"))
    assert f"cd {folder}" in capsys.readouterr().out


def test_a_kind_that_aws_lacks_ends_with_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy(tmp_path, "aws", "--gpu-kind", "H100", "--gpus-per-node", "4") == EXIT_CANNOT_RUN
    assert "--gpus-per-node 4: aws has machines with 1, 8 H100" in capsys.readouterr().err
    assert not (tmp_path / "files").exists()
