"""`retake submit`, the whole way: a real head of Ray with a token, and jobs that end and are ended.

The head has none of this package on its path: what runs there is what travelled.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from cluster.job import CannotRun
from cluster.submission.head import reach
from cluster.submission.submitted import end_of, job_logs, job_status, stop_job
from jobs.cli import app
from jobs.manifest.writing import write_manifest
from tests.cluster.submission.ray_head import RayHead, ray_head
from tests.jobs.test_run import SMALL, a_row, a_video, results
from tests.run import python_path

ROOT = Path(__file__).parents[3]
VALUE = "hf_0123456789abcdefghijklmnopqrstuv"
FAILED = "edits failed"

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head() as started:
        yield started


def a_job(folder: Path, steps: int = 3) -> Path:
    """A job of two videos, of which one is not there."""
    rows = [
        a_row(a_video(folder / "a.mp4"), "red", video_id="a"),
        a_row("nowhere.mp4", "red", video_id="b"),
    ]
    write_manifest(rows, f"{folder}/manifest.parquet")
    job = {**SMALL, "manifest": "manifest.parquet", "output": "out"}
    job["inversion"] = {**SMALL["inversion"], "steps": steps}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(job))
    return folder / "tiny.yaml"


@contextmanager
def submitted(job: Path, head: RayHead, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`retake submit` in a process of its own, as a user starts it."""
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": python_path(ROOT), "HF_TOKEN": VALUE}
    command = [sys.executable, "-m", "jobs.cli", "submit", str(job)]
    command += ["--address", head.address, "--token-file", head.token_file, *options]
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


def id_in(line: str) -> str:
    assert line.startswith("id       retake-tiny-"), line
    return line.split()[1]


def retake(head: RayHead, command: str, *arguments: str) -> Result:
    """A command that asks the head."""
    where = ["--address", head.address, "--token-file", head.token_file]
    return CliRunner().invoke(app, [command, *arguments, *where])


def ranks_have(value: str) -> bool:
    """Whether a rank process of the job has HF_TOKEN with that value."""
    for process in psutil.process_iter(["cmdline"]):
        if "cluster.ranks.process" in (process.info["cmdline"] or ()):
            try:
                if process.environ().get("HF_TOKEN") == value:
                    return True
            except psutil.Error:  # it has ended meanwhile
                pass
    return False


def watched(holds: Callable[[], bool], process: subprocess.Popen[str]) -> threading.Event:
    """An event that is set as soon as something holds while a process runs."""
    seen = threading.Event()

    def watch() -> None:
        while process.poll() is None and not seen.is_set():
            if holds():
                seen.set()
            seen.wait(0.2)

    threading.Thread(target=watch, daemon=True).start()
    return seen


def test_a_job_is_sent_followed_and_ends_with_the_exit_status_of_its_run(
    head: RayHead, tmp_path: Path
) -> None:
    ours = (head.address, head.token_file)
    with submitted(a_job(tmp_path), head, "--env", "HF_TOKEN") as process:
        assert process.stdout
        job_id = id_in(process.stdout.readline())
        lines, during = [], None
        seen = watched(lambda: ranks_have(VALUE), process)
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if line.startswith("comparing"):
                during = job_status(job_id, *ours)
                shown = retake(head, "status", job_id)
                assert any("checking the job" in one for one in job_logs(job_id, *ours))
        assert process.wait(10) == 3, lines
    assert during
    assert (during.status, during.runs, during.exit_code) == ("RUNNING", True, None)
    assert (during.name, during.output) == ("tiny", f"{tmp_path}/out")
    assert (shown.exit_code, shown.output) == (
        0,
        f"{job_id}: RUNNING\n`retake status {tmp_path}/out` shows how far it is\n",
    )
    assert seen.is_set(), "a rank lacks what --env names"
    made = results(tmp_path)
    assert {key: row["status"] for key, row in made.items()} == {
        ("a", "red"): "ok",
        ("b", "red"): "failed",
    }
    after = job_status(job_id, *ours)
    assert (after.status, after.exit_code, after.runs) == ("FAILED", 3, False)
    assert after.started_s
    assert after.ended_s
    assert after.ended_s > after.started_s
    logged = list(job_logs(job_id, *ours, follow=True))
    assert [line for line in logged if FAILED in line] == [line for line in lines if FAILED in line]
    assert stop_job(job_id, *ours) == after, "a job that has ended stays as it is"
    shown = retake(head, "status", job_id)
    assert (shown.exit_code, shown.output.splitlines()[0]) == (
        3,
        f"{job_id}: FAILED, exit status 3",
    )
    shown = retake(head, "status", job_id, "--json")
    assert (shown.exit_code, json.loads(shown.output)) == (3, asdict(after))
    for follow in ((), ("--follow",)):
        assert retake(head, "logs", job_id, *follow).output.splitlines() == logged
    shown = retake(head, "stop", job_id)
    assert (shown.exit_code, shown.output) == (0, f"{job_id} has ended already: FAILED\n")
    for text in (*lines, *(p.read_text(errors="replace") for p in head.logs.rglob("*.*g"))):
        assert VALUE not in text
        assert head.token not in text


def test_following_can_be_left_and_a_stop_ends_the_run_in_order(
    head: RayHead, tmp_path: Path
) -> None:
    ours = (head.address, head.token_file)
    with submitted(a_job(tmp_path, steps=1000), head) as process:
        assert process.stdout
        job_id = id_in(process.stdout.readline())
        for line in process.stdout:
            if line.startswith("comparing"):
                process.send_signal(signal.SIGINT)
                break
        said = process.stdout.read()
        assert process.wait(20) == 130
    assert "stopped following; the job goes on: `retake logs " in said
    assert job_status(job_id, *ours).runs
    shown = retake(head, "stop", job_id)
    assert (shown.exit_code, shown.output) == (
        0,
        f"asked {job_id} to stop\n{job_id} has ended: STOPPED\n",
    )
    lines = list(job_logs(job_id, *ours, follow=True))
    after = end_of(reach(*ours), job_id)
    assert (after.status, after.exit_code) == ("STOPPED", 143)
    assert "stopped; run the same command again to go on" in lines
    log = (head.logs / f"jobs/supervisor-{job_id}.log").read_text()
    assert "has been terminated gracefully with SIGTERM" in log


def test_what_a_head_does_not_know_or_refuses_is_said(head: RayHead, tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="has no job 'retake-none-00000000'"):
        job_status("retake-none-00000000", head.address, head.token_file)
    (tmp_path / "wrong").write_text("another-token")
    with submitted(a_job(tmp_path), head, "--token-file", str(tmp_path / "wrong")) as process:
        assert process.stdout
        said = process.stdout.read()
        assert process.wait(10) == 1
    assert said.startswith(f"error: the cluster at {head.address} refuses the token of --token-f")
    assert "another-token" not in said


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        (
            {},
            "asks for a token, and there is none here. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN",
        ),
        ({"RAY_AUTH_TOKEN": "wrong-token"}, "asks for a token. Set RAY_AUTH_MODE=token: only then"),
        (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong-token"},
            "refuses the token of RAY_AUTH_TOKEN: it has another one",
        ),
    ],
)
def test_a_run_that_joins_a_cluster_says_what_is_wrong_with_its_token(
    head: RayHead, tmp_path: Path, environment: dict[str, str], part: str
) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    here = {"RAY_ADDRESS": head.gcs, "HOME": str(tmp_path), "PYTHONPATH": python_path(ROOT)}
    join = (
        "import os\n"
        "from cluster.connection import _join\n"
        "from cluster.job import CannotRun\n"
        "try:\n    _join(os.environ['RAY_ADDRESS'])\n"
        "except CannotRun as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", join],
        env=kept | here | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    said = f"the environment variable RAY_ADDRESS is {head.gcs!r}, and the cluster there {part}"
    assert done.stdout.startswith(said), done.stdout + done.stderr
    assert "`ray get-auth-token` prints it on the head" in done.stdout or "only then" in part
    assert "wrong-token" not in done.stdout
