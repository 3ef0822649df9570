"""The files for SkyPilot: its own parser, and what it runs on its nodes, run here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml

from cluster.deploy.clouds.skypilot import AGENT_PORT, run, setup, skypilot, skypilot_next
from cluster.deploy.needs import Needs
from cluster.settings import ClusterSettings
from jobs.manifest.writing import write_manifest
from tests.beside import SKYPILOT
from tests.cluster.deploy.clouds.needs import needs
from tests.cluster.deploy.clouds.shells import check_shell
from tests.docs.pages import ROOT
from tests.jobs.test_run import SMALL, a_row, a_video
from tests.run import python_path

CPU = ClusterSettings(device="cpu")
CASES = {
    "H100": needs(gpu_kind="H100", nodes=2),
    "spot": needs(gpu_kind="A100-40GB", spot=True, zone="aws"),
    "CPUs": needs(settings=CPU, nodes=3),
}


@pytest.mark.skipif(not SKYPILOT.is_dir(), reason="SkyPilot is not there; `make test` brings it")
def test_skypilots_own_parser_reads_the_tasks(tmp_path: Path) -> None:
    for name, wanted in CASES.items():
        (tmp_path / f"{name}.yaml").write_text(skypilot(wanted)["sky.yaml"])
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.deploy.clouds.parsing", *_files(tmp_path)],
        cwd=tmp_path,
        env={
            **os.environ,
            "HOME": str(tmp_path),
            "PYTHONPATH": f"{SKYPILOT}:{ROOT}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    read = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("READ")]
    found = dict(zip(CASES, read, strict=True))
    for one in read:
        assert (one["name"], one["strategy"]) == ("horses", "EAGER_NEXT_REGION")
        assert (one["restarts"], one["secrets"]) == (2, ["RAY_AUTH_TOKEN"])
    assert found["H100"]["accelerators"] == {"H100": 8}
    assert (found["H100"]["nodes"], found["H100"]["spot"]) == (2, False)
    assert found["spot"]["accelerators"] == {"A100": 8}
    assert (found["spot"]["spot"], found["spot"]["infra"]) == (True, "aws")
    assert found["CPUs"]["accelerators"] is None
    assert (found["CPUs"]["nodes"], found["CPUs"]["cpus"]) == (3, "8+")


def _files(folder: Path) -> list[str]:
    return [str(folder / f"{name}.yaml") for name in CASES]


@pytest.mark.parametrize("name", CASES)
def test_shells_take_every_script(name: str, tmp_path: Path) -> None:
    files = skypilot(CASES[name])
    task = yaml.safe_load(files["sky.yaml"])
    scripts = {
        "launch.sh": files["launch.sh"],
        "setup.sh": f"#!/bin/bash\n{task['setup']}",
        "run.sh": f"#!/bin/bash\n{task['run']}",
    }
    for file, text in scripts.items():
        (tmp_path / file).write_text(text)
    check_shell(*(tmp_path / file for file in scripts))


def test_the_job_is_launched_with_the_secrets_that_are_set_and_they_stand_in_no_file(
    tmp_path: Path,
) -> None:
    wanted = needs(gpu_kind="L4", env=("MINE", "NOT_SET"))
    for file, text in skypilot(wanted).items():
        (tmp_path / file).write_text(text)
    (tmp_path / wanted.versions.wheel).touch()
    stub = tmp_path / "sky"
    stub.write_text('#!/bin/bash\nprintf "%s\\n" "$@" "token ${#RAY_AUTH_TOKEN}"\n')
    stub.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MINE": "hush", "HF_TOKEN": "hf_x"}
    done = subprocess.run(
        ["bash", tmp_path / "launch.sh"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    given = done.stdout.split("\n")
    assert given[:2] == ["jobs", "launch"]
    secrets = [given[place + 1] for place, word in enumerate(given) if word == "--secret"]
    assert secrets == ["RAY_AUTH_TOKEN", "HF_TOKEN", "MINE"]
    assert "token 64" in given
    assert not any("hush" in file.read_text() for file in tmp_path.iterdir())
    assert skypilot_next(wanted)[0] == "./launch.sh"


def test_the_environment_gets_exactly_the_versions_here() -> None:
    text = setup(CASES["spot"])
    version = CASES["spot"].versions
    assert f"--python {version.short_python} " in text
    assert f'--constraints ./constraints.txt ./"{version.wheel}[s3]"' in text
    assert f"ray=={version.ray}\n" in skypilot(CASES["spot"])["constraints.txt"]


@pytest.mark.parametrize(("of_the_run", "of_the_node"), [(0, 0), (1, 1), (3, 3), (143, 0)])
def test_what_retake_stop_ended_is_not_launched_again(
    of_the_run: int, of_the_node: int, tmp_path: Path
) -> None:
    """With stand-ins for Ray and the run: 143 is the status of a run that was asked to stop."""
    scripts = {"ray": "sleep 60", "python": "exit 0", "retake": f"exit {of_the_run}"}
    place = tmp_path / "retake-env/bin"
    place.mkdir(parents=True)
    for name, script in scripts.items():
        (place / name).write_text(f"#!/bin/bash\n{script}\n")
        (place / name).chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as head:
        wanted = needs(settings=CPU)
        wanted = replace(wanted, ports={**wanted.ports, "gcs": head.getsockname()[1]})
        done = subprocess.run(
            ["bash", "-c", run(wanted)],
            cwd=tmp_path,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "SKYPILOT_NODE_IPS": "127.0.0.1",
                "SKYPILOT_NODE_RANK": "0",
                "SKYPILOT_NUM_NODES": "1",
            },
            check=False,
            timeout=30,
        )
    assert done.returncode == of_the_node


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.timeout(240)
def test_the_nodes_of_a_job_find_each_other_and_the_first_runs_it(tmp_path: Path) -> None:
    """Two nodes on this machine, as SkyPilot starts them; all their processes end with the job."""
    folder = _a_job(tmp_path)
    ports = [_free_port() for _ in range(4)]
    wanted = needs(settings=CPU, nodes=2)
    wanted = replace(wanted, ports={**wanted.ports, "gcs": ports[0], "dashboard": ports[1]})
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, _ray_folder(wanted), ignore_errors=True)
        head, worker = (_node(stack, wanted, folder, rank, ports[2 + rank]) for rank in (0, 1))
        text, _ = head.communicate(timeout=200)
        assert head.returncode == 0, text
        assert "2 of 2 are in Ray's cluster" in text
        assert len(list((folder / "out" / "edits").glob("*/*.mp4"))) == 1, text
        rest, _ = worker.communicate(timeout=30)
        assert worker.returncode == 0, rest
        assert not _left(folder)


def _a_job(folder: Path) -> Path:
    a_video(folder / "horse.mp4")
    write_manifest(
        [a_row(str(folder / "horse.mp4"), "a red ring")], str(folder / "manifest.parquet")
    )
    places = {"manifest": str(folder / "manifest.parquet"), "output": str(folder / "out")}
    job = {**places, "checkpoint": "embedded", **SMALL, "cluster": {"device": "cpu"}}
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    (folder / "home").mkdir()
    (folder / "home" / "retake-env").symlink_to(sys.prefix)
    return folder


def _node(
    stack: ExitStack, wanted: Needs, folder: Path, rank: int, agent: int
) -> subprocess.Popen[str]:
    where = folder / f"node-{rank}"
    where.mkdir()
    (where / "job.yaml").symlink_to(folder / "job.yaml")
    script = run(wanted).replace(str(AGENT_PORT), str(agent))
    node = subprocess.Popen(
        ["bash", "-c", script],
        cwd=where,
        env={
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
            "HOME": str(folder / "home"),
            "PYTHONPATH": python_path(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0" * 64,
            "RAY_TMPDIR": _ray_folder(wanted),
            "RAY_OVERRIDE_RESOURCES": '{"CPU": 4}',
            "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1",
            "SKYPILOT_NODE_RANK": str(rank),
            "SKYPILOT_NUM_NODES": "2",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    stack.callback(_end, node, folder)
    return node


def _ray_folder(wanted: Needs) -> str:
    """Short: the names of sockets are in it."""
    return f"/tmp/retake-{wanted.ports['gcs']}"


def _left(folder: Path) -> list[psutil.Process]:
    """The processes that were started in the folder of a node."""
    return [one for one in psutil.process_iter() if _cwd(one).startswith(f"{folder}/node-")]


def _cwd(process: psutil.Process) -> str:
    try:
        return process.cwd()
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return ""


def _end(node: subprocess.Popen[str], folder: Path) -> None:
    for one in _left(folder):
        try:
            one.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    node.wait(10)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
