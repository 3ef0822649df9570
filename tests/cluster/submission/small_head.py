"""A small HTTP server that answers as the dashboard of a Ray head does, or otherwise."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, str]


def version_of(ray: str) -> Callable[[Mapping[str, str]], Answer]:
    """The answer of a head with that version of Ray, which asks for no token."""
    text = json.dumps({"version": "4", "ray_version": ray, "ray_commit": "c", "session_name": "s"})
    return lambda headers: (200, text)


def asks_for(token: str, ray: str) -> Callable[[Mapping[str, str]], Answer]:
    """The answers of a head that asks for a token."""

    def answer(headers: Mapping[str, str]) -> Answer:
        given = headers.get("Authorization")
        if not given:
            return 401, "Unauthorized: Missing authentication token"
        if given != f"Bearer {token}":
            return 403, "Forbidden: Invalid authentication token"
        return version_of(ray)(headers)

    return answer


@contextmanager
def small_head(answer: Callable[[Mapping[str, str]], Answer]) -> Iterator[str]:
    """The address of a server that answers each GET so.

    Args:
        answer: of the request's headers; gives a status and a text.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = answer(dict(self.headers))
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
