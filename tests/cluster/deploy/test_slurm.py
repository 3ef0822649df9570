"""The batch script for Slurm, under stand-ins for srun and scontrol."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.deploy.slurm import slurm
from cluster.results.parts import read_parts
from jobs.deployment.files import job_text
from jobs.spec import parse_job
from pipeline.storage import Folder
from tests.cluster.deploy.jobs import HERE, MANY, needs
from tests.cluster.deploy.shells import shellcheck

TWO_NODES = Path(__file__).parent / "two_nodes"
OWN = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def options(script: str) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script, re.MULTILINE)
    return dict(found)


@pytest.mark.parametrize("name", MANY)
def test_shellcheck_finds_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "job.sbatch").write_text(slurm(MANY[name])["job.sbatch"])
    shellcheck(tmp_path / "job.sbatch")


def test_the_options_are_what_the_groups_ask_for() -> None:
    found = options(slurm(MANY["split"])["job.sbatch"])
    assert (found["nodes"], found["ntasks-per-node"]) == ("2", "1")
    assert found["gpus-per-node"] == "a100:8"
    assert found["signal"] == "B:USR1@100"  # 20 s of grace, 20 for Ray, 60 that Slurm may be late
    assert options(slurm(MANY["queue"])["job.sbatch"])["partition"] == "team-a"
    assert "gpus-per-node" not in options(slurm(MANY["cpu"])["job.sbatch"])


def environment(folder: Path, *first: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    home = folder / "home"
    home.mkdir()
    path = os.pathsep.join([*map(str, first), kept["PATH"]])
    slurms = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NODELIST": "n", "SLURM_CPUS_PER_TASK": "2"}
    return kept | slurms | {"PATH": path, "HOME": str(home)}


@pytest.fixture
def stand_ins(tmp_path: Path) -> dict[str, str]:
    """srun runs the head's task alone, and a `ray` without Ray runs what follows `--`."""
    scripts = {
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; export SLURM_PROCID=0; exec "$@"',
        "scontrol": f'echo "$*" >>{tmp_path}/scontrol.log; [ "$1" != show ] || echo localhost',
        "ray": f'echo "$*" >{tmp_path}/ray.log\n'
        f'stat -c %a "$RAY_AUTH_TOKEN_PATH" >{tmp_path}/mode\n'
        f'wc -c <"$RAY_AUTH_TOKEN_PATH" >>{tmp_path}/mode\n'
        'while [ "$1" != -- ]; do shift; done; shift; exec "$@"',
        "retake": '[ "$1" != --version ] || exit 0\necho "$@"; echo "$RAY_ADDRESS"; umask\n'
        'trap "exit 143" TERM; echo works; [ -z "$STAYS" ] || '
        "while true; do read -t 0.1 <> <(:) || true; done; exit $STATUS",
    }
    place = tmp_path / "env" / "bin"
    place.mkdir(parents=True)
    for name, script in scripts.items():
        (place / name).write_text(f"#!/bin/bash\n{script}\n")
        (place / name).chmod(0o755)
    (tmp_path / "job.sbatch").write_text(slurm(needs(HERE))["job.sbatch"])
    kept = environment(tmp_path, place)
    return kept | {"RETAKE_ENV": str(place.parent), "STAYS": "", "STATUS": "0"}


def start(folder: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", "job.sbatch"], cwd=folder, env=env, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("status", [0, 1, 3])
def test_the_jobs_status_is_the_runs(
    stand_ins: dict[str, str], tmp_path: Path, status: int
) -> None:
    run = start(tmp_path, stand_ins | {"STATUS": str(status)})
    out, _ = run.communicate(timeout=30)
    assert run.returncode == status
    address = re.search(r"--address (\S+):20242 --min-nodes 1 ", (tmp_path / "ray.log").read_text())
    assert address and not address[1].startswith("127.")
    assert f"run --wait {tmp_path}/job.yaml\n{address[1]}:20242\n" in out
    assert (tmp_path / "mode").read_text().split() == ["600", "64"]
    assert not list((tmp_path / "home/.retake").iterdir())  # no token is left
    assert "requeue" not in (tmp_path / "scontrol.log").read_text()


@pytest.mark.parametrize(
    ("sent", "again"),
    # TERM is what scancel sends: a job that was cancelled must not come back
    [(signal.SIGUSR1, True), (signal.SIGINT, False), (signal.SIGTERM, False)],
)
def test_before_the_time_limit_the_run_ends_in_order_and_goes_into_the_queue(
    stand_ins: dict[str, str], tmp_path: Path, sent: signal.Signals, again: bool
) -> None:
    run = start(tmp_path, stand_ins | {"STAYS": "1"})
    assert run.stdout is not None
    while run.stdout.readline() != "works\n":
        assert run.poll() is None
    run.send_signal(sent)
    run.communicate(timeout=30)
    assert run.returncode == 143
    assert ("requeue 4242" in (tmp_path / "scontrol.log").read_text()) is again


def test_an_environment_with_odd_letters_in_its_path_is_found(
    stand_ins: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "it's $HOME `here`"
    shutil.copytree(tmp_path / "env", odd)
    monkeypatch.setattr(sys, "prefix", str(odd))
    (tmp_path / "job.sbatch").write_text(slurm(needs(HERE))["job.sbatch"])
    del stand_ins["RETAKE_ENV"]
    stand_ins["PATH"] = stand_ins["PATH"].replace(f"{tmp_path}/env/bin", "/none")
    run = start(tmp_path, stand_ins)
    out, _ = run.communicate(timeout=30)
    assert (run.returncode, "works\n" in out) == (0, True)


def can_have_nodes() -> bool:
    done = subprocess.run([*OWN, "ip", "link", "set", "lo", "up"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.ray
@pytest.mark.soak
def test_two_nodes_make_the_edits_of_a_job(tmp_path: Path) -> None:
    """Ray's own `symmetric-run` on two nodes, each with its network, processes and disk."""
    if not shutil.which("unshare") or not shutil.which("ip") or not can_have_nodes():
        pytest.skip("needs root, unshare and ip")
    from jobs.demo.job import write_demo

    job: dict[str, Any] = write_demo(tmp_path / "demo")
    small = {"video": {"height": 32, "width": 32, "frames": 5}, "inversion": {"steps": 2}}
    values = {**job, **small, "output": str(tmp_path / "out"), "cluster": {"device": "cpu"}}
    (tmp_path / "job.yaml").write_text(job_text(parse_job(values, source="the demo")))
    made = slurm(needs(HERE, {"device": "cpu"}, nodes=2))
    (tmp_path / "job.sbatch").write_text(made["job.sbatch"])
    spool = tmp_path / "spool"
    spool.mkdir()
    for name in ("srun", "scontrol"):
        shutil.copy(TWO_NODES / name, spool)
    env = environment(tmp_path, Path(sys.executable).parent)
    env |= {"RETAKE_ENV": sys.prefix, "RAY_TEMP": "/tmp/retake-4242"}
    world = ["bash", str(TWO_NODES / "world.sh"), str(spool), str(tmp_path / "job.sbatch")]
    subprocess.run([*OWN, *world], cwd=tmp_path, env=env, check=True, timeout=280)
    assert (spool / "job.status").read_text() == "0\n", (spool / "task1.log").read_text()[-2000:]
    parts = read_parts(Folder(str(tmp_path / "out")))
    results = [row for _, part in parts for row in part.to_pylist()]
    assert [row["status"] for row in results] == ["ok"] * 6
    assert "Ray runtime started" in (spool / "task2.log").read_text()
