"""A small HTTP proxy that fails on command or by a seeded schedule, before moto's server say.

with s3_server() as environment, faulty(environment) as (proxy, environment):
    proxy.next(Fault.STATUS, Fault.RESET, method="PUT")    # the next two uploads
    proxy.until_healed(Fault.STALL)                        # all requests
    proxy.now_and_then(seed=1, share=0.1)                  # one request in ten
    proxy.down(); proxy.up()                               # connections are refused meanwhile
    proxy.heal()
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from s3fs import S3FileSystem

SLOW_S = 0.2
"""Between the pieces of a slow body."""

DATA = bytes(range(256)) * 400
"""100 kB: an answer that can be cut in two."""


class Fault(StrEnum):
    """What happens to one request."""

    STATUS = "status"  # answered with an HTTP error; it does not reach the server
    RESET = "reset"  # the connection is reset; the request does not reach the server
    LOST = "lost"  # the server does what it is asked, and its answer is lost: a reset
    STALL = "stall"  # no answer comes until `heal`; the request does not reach the server
    HALF_STALL = "half stall"  # half of the answer's body comes, the rest never
    CUT = "cut"  # half of the answer's body comes, then the connection ends
    CUT_UPLOAD = "cut upload"  # a reset as soon as half of the request's body is there
    NO_CONTINUE = "no continue"  # as STALL, and the client is not told to send the body
    UNREAD = "unread"  # as STALL, and the body is not read: no more is taken than fits buffers
    SLOW = "slow"  # the answer's body comes in ten pieces with pauses


@dataclass
class Rule:
    """Which requests get which fault.

    Args:
        faults: one for each request in turn, or one for all where it is `endless`.
        method: only requests with it, such as `PUT`.
        part: only requests with this text in their path.
        status: of `Fault.STATUS`.
    """

    faults: list[Fault]
    method: str | None = None
    part: str = ""
    status: int = 503
    endless: bool = False

    def take(self, method: str, path: str) -> Fault | None:
        if not self.faults or self.method not in (None, method) or self.part not in path:
            return None
        return self.faults[0] if self.endless else self.faults.pop(0)


@dataclass
class FaultProxy:
    """See the module. Its methods may be called from any thread while requests go on.

    Args:
        upstream: `host:port` of the server.
        seen: each request so far, as `METHOD path` with the fault that it got, or "".
    """

    upstream: str
    seen: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._random: tuple[random.Random, float, Sequence[Fault]] | None = None
        self._healed = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.up()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def next(self, *faults: Fault, **which: Any) -> None:
        """The next requests that fit get these, one each. Options as `Rule` has."""
        with self._lock:
            self._rules.append(Rule(list(faults), **which))

    def until_healed(self, fault: Fault, **which: Any) -> None:
        """All requests that fit get this until `heal`. Options as `Rule` has."""
        with self._lock:
            self._rules.append(Rule([fault], endless=True, **which))

    def now_and_then(self, seed: int, share: float, faults: Sequence[Fault] = tuple(Fault)) -> None:
        """A share of all requests get one of these, drawn, until `heal`."""
        with self._lock:
            self._random = random.Random(seed), share, faults

    def heal(self) -> None:
        """No more faults; connections that stall end."""
        with self._lock:
            self._rules.clear()
            self._random = None
            self._healed.set()
            self._healed = threading.Event()

    def down(self) -> None:
        """From here on connections are refused; those that are open break."""
        server, self._server = self._server, None
        if server:
            server.shutdown()
            server.server_close()
            with self._lock:
                self._healed.set()
                self._healed = threading.Event()

    def up(self) -> None:
        """Connections are taken, at the same port as before."""
        if self._server is None:
            self._server = _Server(self, self.port)
            self.port = self._server.server_address[1]
            target = self._server.serve_forever
            threading.Thread(target=target, args=(0.01,), daemon=True).start()

    def fault_of(self, method: str, path: str) -> tuple[Fault | None, int]:
        """What a request gets, and the status of `Fault.STATUS`."""
        with self._lock:
            for rule in self._rules:
                if (fault := rule.take(method, path)) is not None:
                    self.seen.append((f"{method} {path}", fault))
                    return fault, rule.status
            drawn = None
            if self._random:
                chance, share, faults = self._random
                drawn = chance.choice(faults) if chance.random() < share else None
            self.seen.append((f"{method} {path}", drawn or ""))
            return drawn, 503

    @property
    def healed(self) -> threading.Event:
        return self._healed


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, proxy: FaultProxy, port: int) -> None:
        self.proxy = proxy
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self.open):
            _reset(connection)

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no error of a test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 600
    server: _Server
    _drawn: tuple[Fault | None, int] | None = None

    def handle_expect_100(self) -> bool:
        self._drawn = self.server.proxy.fault_of(self.command, self.path)
        if self._drawn[0] is Fault.NO_CONTINUE:
            self.server.proxy.healed.wait(600)
            self._break()
            return False
        return super().handle_expect_100()

    def _handle(self) -> None:
        proxy = self.server.proxy
        fault, status = self._drawn or proxy.fault_of(self.command, self.path)
        self._drawn = None
        healed = proxy.healed
        if fault in (Fault.NO_CONTINUE, Fault.UNREAD):
            healed.wait(600)
            return self._break()
        if fault is Fault.CUT_UPLOAD:
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            return self._break()
        body = self._body()
        if fault is Fault.STALL:
            healed.wait(600)
        if fault in (Fault.STALL, Fault.RESET):
            return self._break()
        if fault is Fault.STATUS:
            return self._refuse(status)
        answer, headers, data = self._ask(body)
        if fault is Fault.LOST:
            return self._break()
        self.send_response_only(answer)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD" or answer in (204, 304):
            return None
        if fault in (Fault.CUT, Fault.HALF_STALL):
            self.wfile.write(data[: len(data) // 2])
            if fault is Fault.HALF_STALL:
                healed.wait(600)
            return self._break(gently=fault is Fault.CUT)
        pieces = 10 if fault is Fault.SLOW else 1
        step = max(1, -(-len(data) // pieces))
        for start in range(0, len(data), step):
            if start:
                time.sleep(SLOW_S)
            self.wfile.write(data[start : start + step])
        return None

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """The server's answer: status, headers, body."""
        connection = HTTPConnection(self.server.proxy.upstream, timeout=600)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            hop = ("connection", "expect", "transfer-encoding", "content-length")
            for name, value in self.headers.items():
                if name.lower() not in hop:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
            drop = ("connection", "transfer-encoding", "content-length")
            headers = [(n, v) for n, v in answer.getheaders() if n.lower() not in drop]
            length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
            if length is not None and answer.status != 204:
                headers.append(("Content-Length", str(length)))
            return answer.status, headers, data
        finally:
            connection.close()

    def _refuse(self, status: int) -> None:
        code = {429: "TooManyRequests", 503: "SlowDown", 403: "AccessDenied", 404: "NoSuchKey"}
        text = (
            f"<Error><Code>{code.get(status, 'InternalError')}</Code><Message>x</Message></Error>"
        )
        data = b"" if self.command == "HEAD" else text.encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _break(self, gently: bool = False) -> None:
        """End the connection, with a reset or as if all had been said."""
        self.close_connection = True
        if not gently:
            _reset(self.connection)

    def handle(self) -> None:
        with suppress(ConnectionError, OSError):
            super().handle()

    def log_message(self, *_: object) -> None:
        pass


def _reset(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close() if connection.fileno() < 0 else _close(connection)


def _close(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RD)  # wakes a thread that reads
    connection.close()


@contextmanager
def faulty(environment: Mapping[str, str]) -> Iterator[tuple[FaultProxy, dict[str, str]]]:
    """A proxy before the server of an environment; yields it, and the environment that leads to it.

    Args:
        environment: as `s3_server` yields it.
    """
    proxy = FaultProxy(environment["AWS_ENDPOINT_URL"].removeprefix("http://"))
    S3FileSystem.clear_instance_cache()
    try:
        yield proxy, {**environment, "AWS_ENDPOINT_URL": proxy.url}
    finally:
        proxy.heal()
        proxy.down()
        S3FileSystem.clear_instance_cache()
