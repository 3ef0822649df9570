"""Storage that refuses, breaks off or is full, and videos over the limits, for docs/messages.md."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.ranks.failures import as_row_error
from pipeline.errors import RowError
from pipeline.media import apart
from pipeline.storage import Folder, check_file, local_copy, patience
from tests.docs.mistakes.on_a_node import raised
from tests.docs.mistakes.provoke import EDITS, Mistakes, python, retake, stored, validate
from tests.drawn_videos import draw

TIMEOUT_S = 0.5
ENDED = threading.Event()
"""The server that hangs need not any longer."""

# A web server


class Answers(BaseHTTPRequestHandler):
    """Answers as the path of a request says."""

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2].partition(".")[0]
        if name == "hangs":
            ENDED.wait(60)
        self.send_response(int(name) if name.isdigit() else 200)
        body = b"<!DOCTYPE html><html>" if name == "page" else b"video"
        self.send_header("Content-Length", str(len(body) * (9 if name == "half" else 1)))
        self.end_headers()
        if self.command == "GET":
            with suppress(OSError):  # nobody waits any longer
                self.wfile.write(body)
        self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None: ...


@contextmanager
def web(**quick: str) -> Iterator[str]:
    """The address of a server, with these environment variables."""
    ENDED.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server, patch.dict(os.environ, quick):
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            ENDED.set()
            server.shutdown()
            thread.join()


def answered(name: str) -> str:
    """What the row says of a video on this server; the page has its port as 8000."""

    def copy(address: str) -> None:
        with local_copy(f"{address}/{name}.mp4"):
            pass

    quick = {"RETAKE_STORAGE_TIMEOUT_S": str(TIMEOUT_S)} if name == "hangs" else {}
    with web(**quick) as address:
        text = raised(lambda: copy(address), RowError)
    return text.replace(address.rpartition(":")[2], "8000")


# Object storage and file systems


def without_credentials() -> str:
    """What the row says of a video on S3 where nothing is set."""
    from s3fs import S3FileSystem

    files = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")
    nowhere = {**dict.fromkeys(files, "none"), "AWS_EC2_METADATA_DISABLED": "true"}
    with patch.dict(os.environ, nowhere):
        for name in [one for one in os.environ if one.startswith("AWS_") and one not in nowhere]:
            del os.environ[name]
        S3FileSystem.clear_instance_cache()
        try:
            return raised(lambda: check_file("s3://bucket/a.mp4"), RowError)
        finally:
            S3FileSystem.clear_instance_cache()


@contextmanager
def failing(number: int) -> Iterator[None]:
    """Every file that is written fails with this error of the file system, as on a full disk."""

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    quick = {"RETAKE_STORAGE_PATIENCE_S": "0"}
    with patch.object(os, "fsync", fail), patch.dict(os.environ, quick):
        yield


def edit_of_a_job(number: int) -> str:
    """What the row says where a rank cannot write its edit."""
    with failing(number):
        try:
            Folder("out").write("edits/horse/a.mp4", b"video")
        except OSError as error:
            with redirect_stderr(io.StringIO()):  # the log of the rank has it in full
                return as_row_error(error).message
    return "nothing was raised"


def full(what: Callable[[], str]) -> str:
    with failing(errno.ENOSPC):
        return what()


def run_on_a_full_disk() -> str:
    return full(lambda: retake("run", "job.yaml"))


def without_room_for_a_copy() -> str:
    """What the row says where the folder for temporary files is full."""

    def no_room(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        patch.object(tempfile, "tempdir", str(Path("tmp").absolute())),
        patch.object(tempfile, "TemporaryFile", no_room),
        patch.object(patience, "_on_wait", lambda _: None),
        patch.dict(os.environ, {"RETAKE_STORAGE_PATIENCE_S": "0"}),
    ):
        return raised(lambda: local_copy("horse.mp4").__enter__(), RowError)


STORAGE: Mistakes = {
    "a video on a server that answers 403": lambda: answered("403"),
    "a video on a server that answers 503 for as long as it is waited for": lambda: answered("503"),
    "a video on a server that hangs": lambda: answered("hangs"),
    "a video on a server that breaks off": lambda: answered("half"),
    "a video on a server that sends a web page": lambda: answered("page"),
    "a video on S3, without credentials": without_credentials,
    "`retake run`, a full disk": run_on_a_full_disk,
    "an edit of a job, a full disk": lambda: edit_of_a_job(errno.ENOSPC),
    "an edit of a job, a quota that is used up": lambda: edit_of_a_job(errno.EDQUOT),
    "an edit of a job, a file system that is read-only": lambda: edit_of_a_job(errno.EROFS),
    "an edit of a job, a network file system that went away": lambda: edit_of_a_job(errno.ESTALE),
    "a trajectory, a full disk": lambda: full(lambda: python(lambda _: stored().save("another"))),
    "`retake report made`, a full disk": lambda: full(lambda: retake("report", "made")),
    "a temporary copy, a full disk": without_room_for_a_copy,
}

# Limits


def limited(limits: str, video: str = "horse.mp4") -> str:
    """What `retake validate --deep` says of a video, with these limits."""
    pq.write_table(pa.Table.from_pylist([{"video": video, "edits": EDITS}]), "t.parquet")
    changed = "--set", "manifest=t.parquet", "--set", f"limits={{{limits}}}"
    return validate("", "--deep", *changed)


def large_picture() -> str:
    picture = np.zeros((8192, 8192, 3), np.uint8)
    Path("large.gif").write_bytes(draw([picture], container="gif", codec="gif", pix_fmt="rgb8"))
    return limited("memory_gb: 0.2", "large.gif")


def ends_its_decoder() -> str:
    """What the row says of a file that ends whatever decodes it."""
    program = "import os, socket; s = socket.socket(fileno=int(os.environ['{}'])); s.recv(8); {}"
    dies = program.format(apart.CHANNEL, "os.kill(os.getpid(), 11)")
    spawn = subprocess.Popen
    while apart._Decoder._idle:
        apart._Decoder._idle.pop().end()
    with patch.object(
        apart.subprocess, "Popen", lambda _, **more: spawn([sys.executable, "-c", dies], **more)
    ):
        return limited("")


def pipe() -> str:
    os.mkfifo("pipe.mp4")
    return limited("", "pipe.mp4")


LIMITS: Mistakes = {
    "a file of 2 kB, `limits: {file_gb: 1.0e-6}`": lambda: limited("file_gb: 1.0e-6"),
    "a picture of 3072 pixels, `limits: {pixels: 1000}`": lambda: limited("pixels: 1000"),
    "a video of 20 frames, `limits: {frames: 6}`": lambda: limited("frames: 6"),
    "a picture of 67 megapixels, `limits: {memory_gb: 0.2}`": large_picture,
    "a file that ends the process that decodes it": ends_its_decoder,
    "a pipe": pipe,
}
