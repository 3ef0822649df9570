"""An S3 server on this machine, spoken to over HTTP."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s3fs import S3FileSystem

ACCESS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}

PROGRAM = """
from moto.server import ThreadedMotoServer
from werkzeug.serving import WSGIRequestHandler
import sys

def log_request(self, *_):
    print(self.command, self.path, self.headers.get("Range", ""), file=log, flush=True)

if len(sys.argv) > 1:
    log = open(sys.argv[1], "a")
    WSGIRequestHandler.log_request = log_request
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""


@contextmanager
def s3_server(log: Path | None = None) -> Iterator[dict[str, str]]:
    """Starts moto's server; yields the environment variables with which s3fs talks to it.

    Args:
        log: a file that gets a line for each request: `METHOD path range`.
    """
    server = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *([str(log)] if log else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **ACCESS},
    )
    assert server.stdout
    assert server.stdin
    try:
        port = int(server.stdout.readline())
        # A file system that this process made for an earlier server would talk to that one still.
        S3FileSystem.clear_instance_cache()
        yield {**ACCESS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    finally:
        server.stdin.close()  # its sign to stop
        server.wait(30)
        server.stdout.close()
