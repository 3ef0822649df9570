"""A video whose every read the test sees, and may hold up: so it knows when a group is at work."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.faults.scene.dataset import draw_clip


@contextmanager
def watched_video(folder: Path, on_read: Callable[[int], None]) -> Iterator[str]:
    """Serve a drawn clip over HTTP; yields its URI.

    Args:
        folder: for the clip.
        on_read: called with the client's port before each answer to a read, in a thread of its own.
    """
    draw_clip(folder / "watched.mp4", 7)
    data = (folder / "watched.mp4").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(200, data)

        def do_GET(self) -> None:
            on_read(self.client_address[1])
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if found:
                self.answer(206, data[int(found[1]) : int(found[2]) + 1])
            else:
                self.answer(200, data)

        def answer(self, status: int, part: bytes) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):  # a client that is no more
                self.send_response(status)
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(part)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True  # one may hold a read up still
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/watched.mp4"
    finally:
        server.shutdown()
        server.server_close()
