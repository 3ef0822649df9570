"""The image, the compose file and the script, read by the tools that read such files."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import yaml

from cluster.deploy.docker import docker
from cluster.deploy.versions import CUDA, installed
from cluster.job import CannotRun
from tests.cluster.deploy.jobs import HERE, needs

BIN = Path(sys.executable).parent
JOBS = {
    "s3": needs(gpu_kind="L4"),
    "local": needs(HERE | {"checkpoint": "/models/5b"}),
    "cpu": needs(HERE, {"device": "cpu"}),
    "gcs": needs({"manifest": "gs://in/m.parquet", "output": "gs://out"}),
    "odd": needs({"manifest": "/it's $HOME: a,b/[ab]/*.parquet", "output": '/o"x y'}),
}


@pytest.fixture(params=JOBS)
def written(request: pytest.FixtureRequest) -> dict[str, str]:
    return docker(JOBS[request.param])


def test_hadolint_finds_nothing_in_the_dockerfile(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(docker(JOBS["s3"])["Dockerfile"])
    done = subprocess.run(
        [BIN / "hadolint", tmp_path / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_has_the_versions_that_are_installed_here() -> None:
    made = docker(JOBS["s3"])
    here = installed(("s3",))
    assert f"--python {here.python} " in made["Dockerfile"]
    assert f"COPY {here.wheel} " in made["Dockerfile"]
    assert f"\nray=={here.ray}\n" in made["requirements.txt"]
    assert "\ns3fs==" in made["requirements.txt"]
    assert "\ns3fs==" not in docker(JOBS["local"])["requirements.txt"]


def test_the_base_has_the_cuda_that_torch_is_built_with() -> None:
    """After another torch: see which CUDA its build on PyPI names, and change CUDA."""
    assert installed().torch.startswith("2.13."), f"is it still CUDA {CUDA}?"
    assert f"nvidia/cuda:{CUDA}." in docker(JOBS["s3"])["Dockerfile"]


def test_the_compose_file_is_one_by_the_specifications_schema(written: dict[str, str]) -> None:
    schemas = files("check_jsonschema") / "builtin_schemas/vendor"
    schema = json.loads((schemas / "compose-spec.json").read_text())
    jsonschema.validate(yaml.safe_load(written["compose.yaml"]), schema)


def test_shellcheck_finds_nothing_in_the_script(written: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text(written["run.sh"])
    subprocess.run([BIN / "shellcheck", tmp_path / "run.sh"], check=True)


def test_local_folders_are_at_the_same_place_and_only_the_output_is_written() -> None:
    service = yaml.safe_load(docker(JOBS["local"])["compose.yaml"])["services"]["retake"]
    assert service["volumes"][2:] == [
        {"type": "bind", "source": "/data", "target": "/data", "read_only": True},
        {"type": "bind", "source": "/data/out", "target": "/data/out"},
        {"type": "bind", "source": "/models/5b", "target": "/models/5b", "read_only": True},
    ]
    script = docker(JOBS["local"])["run.sh"]
    assert "--mount type=bind,source=/data/out,target=/data/out \\" in script
    assert '--user "$(id -u):$(id -g)"' in script


def options_of(script: str, folder: Path, **variables: str) -> list[str]:
    """What a script calls docker with."""
    (folder / "docker").write_text('#!/bin/bash\nprintf "%s\\0" "$@"\n')
    (folder / "docker").chmod(0o755)
    (folder / "run.sh").write_text(script)
    env = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", **variables}
    called = subprocess.run(
        ["bash", folder / "run.sh"], env=env, capture_output=True, text=True, check=True
    )
    return called.stdout.split("\0")


def test_folders_with_odd_letters_and_patterns_are_mounted(tmp_path: Path) -> None:
    made = docker(JOBS["odd"])
    volumes = yaml.safe_load(made["compose.yaml"])["services"]["retake"]["volumes"][2:]
    # Compose reads `$$` as `$`.
    assert [one["source"] for one in volumes] == ["/it's $$HOME: a,b", '/o"x y']
    called = options_of(made["run.sh"], tmp_path)
    mounts = [called[n + 1] for n, word in enumerate(called) if word == "--mount"]
    fields = list(csv.reader(mounts))  # as docker reads them
    assert [one[1:3] for one in fields] == [
        ["source=/it's $HOME: a,b", "target=/it's $HOME: a,b"],
        ['source=/o"x y', 'target=/o"x y'],
    ]


def test_the_key_file_that_a_variable_names_is_in_the_container_too(tmp_path: Path) -> None:
    made = docker(JOBS["gcs"])
    service = yaml.safe_load(made["compose.yaml"])["services"]["retake"]
    name = "GOOGLE_APPLICATION_CREDENTIALS"
    assert name in service["environment"]
    assert f"${{{name}:-/dev/null}}:${{{name}:-/dev/null}}:ro" in service["volumes"]
    called = options_of(made["run.sh"], tmp_path, **{name: "/my keys/k.json"})
    assert "/my keys/k.json:/my keys/k.json:ro" in called
    assert not any("/dev/null" in word or word.startswith(":") for word in called)
    assert "::ro" not in options_of(made["run.sh"], tmp_path)


def test_the_container_gets_gpus_shared_memory_and_time_to_end() -> None:
    service = yaml.safe_load(docker(JOBS["s3"])["compose.yaml"])["services"]["retake"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert service["shm_size"] == "10gb"
    assert service["stop_grace_period"] == "40s"
    assert "--gpus all" in docker(JOBS["s3"])["run.sh"]
    assert "deploy" not in yaml.safe_load(docker(JOBS["cpu"])["compose.yaml"])["services"]["retake"]


def test_variables_are_named_and_never_given_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-to-be-written-anywhere")
    made = docker(needs())
    assert "not-to-be-written-anywhere" not in "".join(made.values())
    service = yaml.safe_load(made["compose.yaml"])["services"]["retake"]
    assert "AWS_SECRET_ACCESS_KEY" in service["environment"]


def test_more_than_one_machine_is_refused() -> None:
    with pytest.raises(CannotRun, match="asks for 3: take another target"):
        docker(needs(nodes=3))
