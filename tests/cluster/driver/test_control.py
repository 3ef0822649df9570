"""An owner's report to the driver, without Ray."""

import subprocess
import sys

import psutil

OWNER = """
import os
from cluster.driver import control
control.ALIVE_S = 0.05
report = control.DriverReport(None, 1)
report._here = lambda: None
node = os.getppid()
print(os.getpid(), flush=True)
report._attend(node)
"""
NODE = """
import subprocess, sys
owner = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(owner.stdout.readline(), end="", flush=True)
sys.stdin.read()
"""


def test_an_owner_ends_with_the_process_of_rays_node_that_started_it() -> None:
    """Ray ends it itself, but where it was about to end when the node died."""
    with subprocess.Popen(
        [sys.executable, "-c", NODE, OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as node:
        assert node.stdout
        owner = psutil.Process(int(node.stdout.readline()))
        assert owner.is_running()
        node.kill()
        psutil.wait_procs([owner], timeout=20)
    assert not owner.is_running() or owner.status() == psutil.STATUS_ZOMBIE
