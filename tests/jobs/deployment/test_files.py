"""`retake deploy`: what it writes, what it refuses, and what it prints."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from jobs.cli import EXIT_CANNOT_RUN, EXIT_DONE, EXIT_USAGE, app
from jobs.spec import load_job


@pytest.fixture
def job(tmp_path: Path) -> Path:
    values = {
        "manifest": "s3://bucket/manifest.parquet",
        "output": "s3://bucket/out",
        "checkpoint": "zai-org/CogVideoX-5b",
        "inversion": {"steps": 30},
        "cluster": {"retries": 4},
    }
    (tmp_path / "horses.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "horses.yaml"


def deploy(target: str, job: Path, options: str = "") -> Result:
    """`retake deploy TARGET JOB --to files`, beside the job."""
    to = str(job.parent / "files")
    return CliRunner().invoke(app, ["deploy", target, str(job), "--to", to, *shlex.split(options)])


@pytest.mark.parametrize(
    ("target", "files", "command"),
    [
        ("kuberay", {"configmap.yaml", "rayjob.yaml"}, "kubectl apply -f rayjob.yaml"),
        ("slurm", {"job.sbatch"}, "sbatch job.sbatch"),
        ("docker", {"Dockerfile", "compose.yaml", "run.sh"}, "docker compose up"),
    ],
)
def test_each_target_writes_its_files_and_says_what_to_type_next(
    job: Path, target: str, files: set[str], command: str
) -> None:
    done = deploy(target, job)
    assert done.exit_code == EXIT_DONE, done.output
    written = {path.name for path in (job.parent / "files").iterdir()}
    assert files | {"job.yaml"} <= written
    assert all(f"{job.parent}/files/{name}\n" in done.output for name in written)
    assert f"next:\n  cd {job.parent}/files\n" in done.output
    assert f"  {command}\n" in done.output


def test_the_written_job_is_the_job_with_its_changes(job: Path) -> None:
    deploy("slurm", job, "--set inversion.steps=7 --set cluster.retries=2")
    text = (job.parent / "files/job.yaml").read_text()
    assert "retries" not in text  # 2 is the default
    changes = ["inversion.steps=7", "cluster.retries=2"]
    assert load_job(str(job.parent / "files/job.yaml")) == load_job(str(job), changes)


def test_relative_paths_become_absolute_and_are_warned_of(job: Path) -> None:
    done = deploy("slurm", job, "--set output=out")
    output = f"{Path.cwd()}/out"
    assert f"output: {output}\n" in (job.parent / "files/job.yaml").read_text()
    assert f"warning: these are paths of this machine: output {output}." in done.output
    assert "warning" not in deploy("docker", job, "--set output=out --overwrite").output


def test_files_that_are_there_stay_unless_they_may_be_replaced(job: Path) -> None:
    (job.parent / "files").mkdir()
    (job.parent / "files/run.sh").write_text("mine")
    refused = deploy("docker", job)
    assert refused.exit_code == EXIT_CANNOT_RUN
    assert "run.sh exist there" in refused.output
    assert [path.name for path in (job.parent / "files").iterdir()] == ["run.sh"]
    assert deploy("docker", job, "--overwrite").exit_code == EXIT_DONE
    assert (job.parent / "files/run.sh").read_text() != "mine"


@pytest.mark.parametrize(
    ("target", "options", "status", "why"),
    [
        ("kubray", "", EXIT_USAGE, "did you mean kuberay?"),
        ("slurm", "--env A=hunter2", EXIT_USAGE, "--env 'A': write the name of a variable, alone"),
        ("slurm", "--nodes 0", EXIT_USAGE, "1 or more"),
        ("slurm", "--gpu-kind K80", EXIT_CANNOT_RUN, "expected one of H200"),
        ("docker", "--nodes 2", EXIT_CANNOT_RUN, "docker brings up one machine"),
        (
            "slurm",
            "--set manifest=https://me:hunter2@host/m.parquet",
            EXIT_CANNOT_RUN,
            "holds a secret",
        ),
    ],
)
def test_what_is_wrong_is_one_message_and_nothing_is_written(
    job: Path, target: str, options: str, status: int, why: str
) -> None:
    done = deploy(target, job, options)
    assert done.exit_code == status
    assert why in " ".join(done.output.replace("│", " ").split())
    assert "hunter2" not in done.output
    assert not (job.parent / "files").exists()


def test_the_job_gives_its_name(job: Path) -> None:
    deploy("kuberay", job)
    made = yaml.safe_load((job.parent / "files/rayjob.yaml").read_text())
    assert made["metadata"]["name"] == "horses"
