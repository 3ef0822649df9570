"""The files for Ray's cluster launcher: Ray's own schema, and its way to the first machines."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.deploy.clouds.aws import aws
from cluster.deploy.clouds.gcp import gcp
from cluster.deploy.clouds.launcher import next_of
from cluster.deploy.needs import Needs
from cluster.job import CannotRun
from cluster.settings import ClusterSettings
from tests.cluster.deploy.clouds.needs import GCS, S3, needs
from tests.cluster.deploy.clouds.shells import check_shell
from tests.cluster.submission.ray_head import free_ports
from tests.docs.pages import ROOT
from tests.run import python_path

CPU = ClusterSettings(device="cpu")
CASES: dict[str, tuple[Needs, dict[str, str]]] = {}


def _case(name: str, target: Any, wanted: Needs) -> None:
    CASES[name] = (wanted, target(wanted))


_case("aws, 8 H100", aws, needs(gpu_kind="H100"))
_case("aws, spot L4", aws, needs(gpu_kind="L4", nodes=3, spot=True, zone="eu-west-1"))
_case("aws, CPUs", aws, needs(settings=CPU, nodes=2))
_case("gcp, 8 H200", gcp, needs(GCS, gpu_kind="H200", project="video-edits"))
_case("gcp, spot L4", gcp, needs(GCS, gpu_kind="L4", nodes=3, spot=True, project="video-edits"))
_case("gcp, CPUs", gcp, needs(GCS, settings=CPU, project="video-edits", env=("HF_TOKEN",)))


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[Needs, dict[str, str]]:
    return CASES[request.param]


def test_rays_own_schema_takes_the_file(case: tuple[Needs, dict[str, str]]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    wanted, files = case
    config = prepare_config(yaml.safe_load(files["cluster.yaml"]))
    validate_config(config)
    types = config["available_node_types"]
    assert types["worker"]["min_workers"] == types["worker"]["max_workers"] == wanted.size.nodes
    assert config["max_workers"] == wanted.size.nodes
    assert types["worker"]["resources"].get("GPU", 0) == wanted.size.gpus
    assert types["head"]["resources"] == {"CPU": 0}
    # Nothing of Ray's own defaults is left, which are for an old image.
    assert not any("ray-wheels" in line for line in config["worker_setup_commands"])


def test_the_token_is_copied_and_asked_for_and_stands_in_no_file(
    case: tuple[Needs, dict[str, str]],
) -> None:
    _, files = case
    config = yaml.safe_load(files["cluster.yaml"])
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    for which in ("head", "worker"):
        assert "RAY_AUTH_MODE=token" in config[f"{which}_start_ray_commands"][-1]


def test_shells_take_every_script_and_command(
    case: tuple[Needs, dict[str, str]], tmp_path: Path
) -> None:
    _, files = case
    config = yaml.safe_load(files["cluster.yaml"])
    commands = [line for key, lines in config.items() if "commands" in key for line in lines]
    scripts = {name: text for name, text in files.items() if name.endswith(".sh")}
    scripts["commands.sh"] = "\n".join(["#!/usr/bin/env bash", "set -e", *commands, ""])
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
    check_shell(*(tmp_path / name for name in scripts))


@pytest.mark.parametrize("name", ["aws, spot L4", "aws, CPUs"])
def test_ray_up_comes_to_machines_of_the_right_kind(name: str, tmp_path: Path) -> None:
    wanted, files = CASES[name]
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    token = tmp_path / "home" / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text("0" * 64)
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.deploy.clouds.launching"],
        cwd=tmp_path,
        env={
            **os.environ,
            "HOME": str(tmp_path / "home"),
            "PYTHONPATH": python_path(ROOT),
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": wanted.zone or "us-east-1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads(done.stdout.rpartition("MADE")[2])
    described = yaml.safe_load(files["cluster.yaml"])["available_node_types"]
    machines = made["machines"]
    assert (len(machines["head"]), len(machines["worker"])) == (1, wanted.size.nodes)
    for name, of_name in machines.items():
        config = described[name]["node_config"]
        for machine in of_name:
            assert machine["InstanceType"] == config["InstanceType"]
            assert machine["ImageId"] == config["ImageId"]
            spot = wanted.spot and name == "worker"
            assert machine["InstanceLifecycle"] == ("spot" if spot else None)
    assert made["worker"].get("GPU", 0) == wanted.size.gpus
    if wanted.size.gpus:
        assert made["worker"][f"accelerator_type:{wanted.gpu.kind}"] == 1


def test_nodes_on_aws_may_use_the_jobs_buckets_and_no_others() -> None:
    script = aws(needs(gpu_kind="L4"))["iam.sh"]
    assert "arn:aws:s3:::in/*" in script
    assert "arn:aws:s3:::out/*" in script
    assert "s3:*" not in script
    assert "arn:aws:s3" not in aws(needs(GCS, gpu_kind="L4"))["iam.sh"]


def test_workers_on_google_cloud_may_use_the_jobs_buckets() -> None:
    files = gcp(needs(GCS, gpu_kind="L4", project="video-edits"))
    account = "horses-worker@video-edits.iam.gserviceaccount.com"
    worker = yaml.safe_load(files["cluster.yaml"])["available_node_types"]["worker"]["node_config"]
    assert worker["serviceAccounts"][0]["email"] == account
    for bucket in ("gs://in", "gs://out"):
        assert f"buckets add-iam-policy-binding {bucket} " in files["iam.sh"]


def test_google_cloud_wants_a_project() -> None:
    with pytest.raises(CannotRun, match="--project is missing"):
        gcp(needs(GCS, gpu_kind="L4"))


def test_keys_of_the_cloud_stay_here_and_other_variables_travel() -> None:
    script = aws(needs(S3, gpu_kind="L4", env=("MINE",)))["run.sh"]
    assert re.findall(r"--env (\w+)", script) == ["AWS_ENDPOINT_URL", "HF_TOKEN", "MINE"]


@pytest.mark.parametrize("status", [0, 3])
def test_submit_ends_with_the_jobs_status_and_takes_its_tunnel_away(
    status: int, tmp_path: Path
) -> None:
    """With stand-ins: `ray dashboard` starts another process that listens, as Ray does with ssh."""
    (port,) = free_ports(1)
    listen = (
        f"import socket; s = socket.create_server(('127.0.0.1', {port}))\nwhile True: s.accept()"
    )
    scripts = {
        "ray": f'echo "$*" >>{tmp_path}/log\n[ "$1" != dashboard ] || {{ '
        f'{sys.executable} -c "$LISTEN" & wait; }}',
        "retake": f'printf "%s|" "$@" >>{tmp_path}/log; exit {status}',
    }
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "run.sh").write_text(CASES["aws, 8 H100"][1]["run.sh"])
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    env = {"PATH": path, "HOME": str(tmp_path), "RETAKE_PORT": str(port), "LISTEN": listen}
    done = subprocess.run(
        ["bash", tmp_path / "run.sh", "submit"],
        env=env | {"HF_TOKEN": "hf_value"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (status, "")
    log = (tmp_path / "log").read_text()
    sent = log.splitlines()[-1].rstrip("|").split("|")
    assert sent == [
        "submit",
        "job.yaml",
        "--address",
        f"http://127.0.0.1:{port}",
        "--env",
        "HF_TOKEN",
    ]
    assert_are_options_of(sent)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.05)
    else:
        raise AssertionError("the tunnel is left")


def assert_are_options_of(words: list[str]) -> None:
    """`retake` takes a command line: its parser reads it, and nothing is run."""
    from typer.main import get_command

    from jobs.cli import app

    command = get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    context = command.make_context(words[0], words[1:])
    assert (context.params["address"], context.params["env"]) == (words[3], ["HF_TOKEN"])


def test_names_of_buckets_cannot_leave_their_quotes(tmp_path: Path) -> None:
    odd = "s3://it's$(touch bad)/m.parquet"
    made = aws(needs(S3 | {"manifest": odd}, gpu_kind="L4"))["iam.sh"]
    more = gcp(needs(GCS | {"manifest": odd.replace("s3", "gs")}, gpu_kind="L4", project="p"))
    for script in (made, more["iam.sh"]):
        (tmp_path / "iam.sh").write_text(script)
        nothing = (
            f'aws() {{ printf \'%s\\n\' "$@"; }}; gcloud() {{ aws "$@"; }}; . {tmp_path}/iam.sh'
        )
        done = subprocess.run(
            ["bash", "-c", nothing], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "bad").exists()


def test_the_script_says_its_steps_and_they_are_the_next_commands(tmp_path: Path) -> None:
    wanted, files = CASES["aws, 8 H100"]
    script = tmp_path / "run.sh"
    script.write_text(files["run.sh"])
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert all(f"./run.sh {step}" in done.stdout for step in ("up", "submit", "down"))
    assert next_of(wanted) == ["./iam.sh", "./run.sh up", "./run.sh submit", "./run.sh down"]
