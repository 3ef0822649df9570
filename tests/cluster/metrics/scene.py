"""A Ray cluster of its own with metrics, a job on it, and a Prometheus that scrapes it.

    python -m tests.cluster.metrics.scene FOLDER PORT

is the cluster: it prints its address, its folder and where its node exports metrics, as JSON, and
lives until its standard input is closed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.metrics.declared import QUEUES
from jobs.manifest.writing import write_manifest
from tests.drawn_videos import draw, waves

PROMETHEUS = os.environ.get("PROMETHEUS") or shutil.which("prometheus")
"""Debian and the project's own site have it; tests of it are skipped where it is not."""
DISCOVERY = "prom_metrics_service_discovery.json"
READY_S = 60.0


@dataclass(frozen=True)
class Scraped:
    """What was seen of a run.

    Args:
        run: its name.
        text: of the last scrape, in Prometheus' format.
        ask: a query of Prometheus over the time of the run; None where it is not there.
    """

    run: str
    text: str
    ask: Callable[[str], list[Any]] | None


@contextmanager
def a_run(folder: Path) -> Iterator[Scraped]:
    """A run of 4 edits and of a video that cannot be read, with its metrics."""
    job = write_job(folder)
    with ExitStack() as stack:
        # Names of sockets have to be short.
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="rm", dir="/tmp"))
        environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
        ray = stack.enter_context(_cluster(temporary, environment))
        ask = stack.enter_context(_prometheus(folder, ray["session"])) if PROMETHEUS else None
        began = time.time()
        environment["RAY_ADDRESS"] = ray["address"]
        command = [sys.executable, "-m", "jobs.cli", "run", str(job)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 3, done.stdout + done.stderr
        text = _wait_for(lambda: _whole(fetch(ray["metrics"])), "the last numbers do not arrive")
        fetched = time.time()
        if ask:
            later = f"count(timestamp(ray_retake_edits_total) > {fetched})"
            _wait_for(lambda: ask(later, fetched), "Prometheus lacks the last numbers")
        results = sorted((folder / "out/results").glob("*.parquet"))
        run = results[-1].name.partition("-")[0]
        yield Scraped(run, text, (lambda query: ask(query, began)) if ask else None)


def write_job(folder: Path) -> Path:
    videos = []
    for name in ("a", "b"):
        (folder / f"{name}.mp4").write_bytes(draw(list(waves(6, 32, 32))))
        edits = [{"edit_id": color, "prompt": color} for color in ("red", "blue")]
        videos.append({"video": f"{name}.mp4", "video_id": name, "edits": edits})
    (folder / "c.mp4").write_bytes(b"no video")
    videos.append({**videos[0], "video": "c.mp4", "video_id": "c"})
    write_manifest(videos, str(folder / "manifest.parquet"))
    job = {
        "manifest": str(folder / "manifest.parquet"),
        "output": str(folder / "out"),
        "checkpoint": "embedded",
        "inversion": {"steps": 2},
        "video": {"height": 32, "width": 32, "frames": 5},
        "cluster": {"layout": "shared", "reconstruction": {"groups": 1}},
    }
    (folder / "job.yaml").write_text(json.dumps(job))
    return folder / "job.yaml"


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return str(answer.read().decode())


@contextmanager
def _cluster(temporary: str, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    command = [sys.executable, "-m", "tests.cluster.metrics.scene", temporary, str(free_port())]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with _process(command, env=environment, **pipes) as process:
        yield json.loads(process.stdout.readline())


@contextmanager
def _prometheus(folder: Path, session: str) -> Iterator[Callable[[str, float], list[Any]]]:
    """A Prometheus that finds its targets as the documentation has it."""
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {
                "job_name": "ray",
                "file_sd_configs": [
                    {"files": [f"{session}/{DISCOVERY}"], "refresh_interval": "1s"}
                ],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        str(PROMETHEUS),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/prometheus",
        f"--web.listen-address={address}",
    ]
    with _process(command, stderr=subprocess.DEVNULL):
        _wait_for(lambda: _asked(address, "up == 1", time.time() - 1), "Prometheus has no target")
        yield lambda query, began: _asked(address, query, began)


def _asked(address: str, query: str, began: float) -> list[Any]:
    """The series of a query with a value at any second since then."""
    values = {"query": query, "start": began, "end": time.time(), "step": 1}
    url = f"http://{address}/api/v1/query_range?{urllib.parse.urlencode(values)}"
    answer = json.loads(fetch(url))
    assert answer["status"] == "success", answer
    return list(answer["data"]["result"])


def _whole(text: str) -> str | None:
    """A scrape, once it has what the run's driver sent when it ended."""
    made = re.search(r'ray_retake_edits_total\{[^}]*status="ok"[^}]*\} 4\.0', text)
    empty = re.findall(r"ray_retake_queue_edits\{[^}]*\} 0\.0", text)
    return text if made and len(empty) == len(QUEUES) else None


def _wait_for(there: Callable[[], Any], what: str) -> Any:
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        try:
            if found := there():
                return found
        except OSError:  # it does not listen yet
            pass
        time.sleep(0.2)
    raise AssertionError(what)


@contextmanager
def _process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        if process.stdin:
            process.stdin.close()
        else:
            process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def main(temporary: str, port: int) -> None:
    from cluster import quiet  # noqa: F401
    import ray  # isort: skip

    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=True,  # which writes the file for Prometheus
        dashboard_port=port,
        log_to_driver=False,
        object_store_memory=100 << 20,
        _temp_dir=temporary,
        _system_config={"metrics_report_interval_ms": 1000},
    )
    (node,) = ray.nodes()
    place = {
        "address": ray.get_runtime_context().gcs_address,
        "session": ray._private.worker._global_node.get_session_dir_path(),
        "metrics": f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics",
    }
    print(json.dumps(place), flush=True)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
