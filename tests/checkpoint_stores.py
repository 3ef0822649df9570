"""Stores that a checkpoint may lie in, on this machine: memory, a web server, a Hub over HTTP."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec


def in_memory(folder: Path, name: str) -> str:
    """A copy of a folder in a store of this process; its URI."""
    fsspec.filesystem("memory").put(str(folder), f"/{name}", recursive=True)
    return f"memory://{name}"


@dataclass
class Hub:
    """A Hugging Face Hub with one repository, as `huggingface_hub` speaks to it.

    Args:
        commits: the folder of each; the main branch is at the last one.
        requests: all so far, as `METHOD path range`.
    """

    commits: dict[str, Path]
    name: str = "someone/CogVideoX"
    requests: list[str] = field(default_factory=list)
    leaked: bool = False
    """Whether the content network was shown a token."""

    def files(self, commit: str) -> dict[str, Path]:
        folder = self.commits[commit]
        found = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path for path in sorted(found)}

    def gets(self, ending: str) -> list[str]:
        """The requests for the contents of files with a name that ends so."""
        return [r for r in self.requests if r.startswith("GET") and r.split()[1].endswith(ending)]


@contextmanager
def hub_server(hub: Hub) -> Iterator[str]:
    """Serves a Hub; yields its endpoint."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
            commit, api = list(hub.commits)[-1], f"/api/models/{hub.name}"
            files = hub.files(commit)
            if path in (api, f"{api}/revision/main", f"{api}/revision/{commit}"):
                siblings = [
                    {"rfilename": n, "size": p.stat().st_size, "blobId": sha(p)}
                    for n, p in files.items()
                ]
                found = {"id": hub.name, "sha": commit, "siblings": siblings}
                return self.answer(200, json.dumps(found).encode())
            if path.startswith(f"{api}/tree/"):
                files = hub.files(path.split("/")[-1])
                tree = [
                    {"type": "file", "path": n, "size": p.stat().st_size, "oid": sha(p)}
                    for n, p in files.items()
                ]
                return self.answer(200, json.dumps(tree).encode())
            if path.startswith(own := f"/{hub.name}/resolve/"):
                commit, name = path.removeprefix(own).split("/", 1)
                return self.file(commit, name)
            if path.startswith("/content/"):
                hub.leaked |= "Authorization" in self.headers
                commit, name = path.removeprefix("/content/").split("/", 1)
                return self.part(hub.files(commit)[name].read_bytes())
            return self.answer(404, b"", **{"X-Error-Code": "RepoNotFound"})

        def file(self, commit: str, name: str) -> None:
            if (file := hub.files(commit).get(name)) is None:
                return self.answer(404, b"", **{"X-Error-Code": "EntryNotFound"})
            about = {"X-Repo-Commit": commit, "ETag": f'"{sha(file)}"'}
            if not name.endswith(".safetensors"):
                return self.part(file.read_bytes(), **about)
            # Large files come from a content network with a name of its own.
            port = self.server.server_address[1]
            about |= {"X-Linked-Size": str(file.stat().st_size), "X-Linked-ETag": f'"{sha(file)}"'}
            place = f"http://127.0.0.1:{port}/content/{commit}/{name}"
            return self.answer(302, b"", Location=place, **about)

        def part(self, data: bytes, **headers: str) -> None:
            if found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                return self.answer(206, data[int(found[1]) : int(found[2]) + 1], **headers)
            return self.answer(200, data, **headers)

        def answer(self, status: int, data: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def web_server(folder: Path, asked: list[str], *, ranges: bool) -> Iterator[str]:
    """Serves a folder with pages that list it; yields its address.

    Args:
        asked: gets the path of each request for a whole file.
        ranges: whether parts of a file can be had.
    """

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if not (ranges and found):
                asked.append(self.path)
                with suppress(BrokenPipeError, ConnectionResetError):  # a client that had enough
                    super().do_GET()
                return
            data = Path(self.translate_path(self.path)).read_bytes()
            data = data[int(found[1]) : int(found[2]) + 1]
            self.send_response(206)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def sha(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
