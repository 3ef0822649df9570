"""A head of Ray on this machine that takes jobs and asks for a token, in processes of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cluster.job import CannotRun
from cluster.submission.head import reach
from tests.run import MEASURED

START_S = 60.0
PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "ray-client-server-port",
)


@dataclass(frozen=True)
class RayHead:
    """A head that runs.

    Args:
        address: of its dashboard.
        gcs: where nodes and drivers join, as RAY_ADDRESS has it.
        logs: the folder that its processes log to.
    """

    address: str
    gcs: str
    token: str = field(repr=False)
    token_file: str
    logs: Path


@contextmanager
def ray_head(cpus: int = 8) -> Iterator[RayHead]:
    """Start a head with ports, a folder and a token of its own; its end ends all of it."""
    folder = Path(tempfile.mkdtemp(prefix="rs", dir="/tmp"))  # short: sockets lie below it
    token = secrets.token_hex(16)
    (folder / "token").write_text(token)
    ports = free_ports(len(PORTS))
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--{name}={port}" for name, port in zip(PORTS, ports, strict=True)]
    command += ["--dashboard-host=127.0.0.1", f"--temp-dir={folder}", f"--num-cpus={cpus}"]
    command += ["--object-store-memory=100000000", "--disable-usage-stats"]
    environment = {name: v for name, v in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    # The jobs get the code that travels, and none that the tests are run with.
    environment["PYTHONPATH"] = str(MEASURED)
    with open(folder / "head.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
    try:
        address = f"http://127.0.0.1:{ports[1]}"
        _wait(process, address, folder)
        yield RayHead(
            address,
            f"127.0.0.1:{ports[0]}",
            token,
            str(folder / "token"),
            folder / "session_latest/logs",
        )
    finally:
        # In order it would take half a minute, and nothing of it is needed any more.
        _kill(process)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], address: str, folder: Path) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            reach(address, str(folder / "token"))
            return
        except CannotRun:
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError((folder / "head.log").read_text()) from None
            time.sleep(0.2)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all below it."""
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    process.kill()
    process.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
