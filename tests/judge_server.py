"""An OpenAI-compatible server on this machine, which answers what a test says.

with judge_server(says(GOOD)) as server:          # the last answer is given again and again
    Judge.load(ScoreSettings(judge=server.url))
    server.requests                               # what was asked
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "tiny-judge"
VERDICT = {"reason": "the ball is red", "follows": 4, "quality": 3, "preserves": 2}
GOOD = json.dumps(VERDICT)


@dataclass
class Answer:
    """One answer.

    Args:
        status, body, headers: of HTTP.
        until: waited for after the headers and half of the body.
        lost: the connection is closed after half of the body.
    """

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    until: threading.Event | None = None
    lost: bool = False


def says(text: str | None, finish: str = "stop", **message: Any) -> Answer:
    """A completion with a text."""
    whole = {"role": "assistant", "content": text} | message
    return Answer(body=json.dumps({"choices": [{"message": whole, "finish_reason": finish}]}))


def refuses(status: int, message: str, code: str | None = None, **headers: str) -> Answer:
    """An error in OpenAI's form."""
    body = json.dumps({"error": {"message": message, "code": code}})
    return Answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class JudgeServer:
    """Its URL, what it was asked, and what it answers next."""

    url: str
    answers: list[Answer | Callable[[dict], Answer]]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    listed: int = 0

    def next(self, asked: dict[str, Any], headers: dict[str, str]) -> Answer:
        self.requests.append(asked)
        self.headers.append(headers)
        one = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return one if isinstance(one, Answer) else one(asked)


@contextmanager
def judge_server(
    *answers: Answer | Callable[[dict], Answer], tls: tuple[str, str] | None = None, port: int = 0
) -> Iterator[JudgeServer]:
    """Start one; `tls` are the files of a certificate and its key."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/v1/models":
                made.listed += 1
                self.answer(Answer(body=json.dumps({"data": [{"id": MODEL}, {"id": "other"}]})))
            else:
                self.answer(Answer(404, '{"detail": "Not Found"}'))

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                self.answer(Answer(404, '{"detail": "Not Found"}'))
                return
            self.answer(made.next(asked, dict(self.headers.items())))

        def answer(self, one: Answer) -> None:
            data = one.body.encode()
            self.send_response(one.status)
            for name, value in one.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if one.until:
                one.until.wait(30)
            if one.lost:
                self.close_connection = True
                return
            with suppress(OSError):  # who asked may be gone
                self.wfile.write(data[len(data) // 2 :])

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.handle_error = lambda *_: None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "https" if tls else "http"
    made = JudgeServer(f"{scheme}://127.0.0.1:{server.server_port}/v1", [*answers])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
