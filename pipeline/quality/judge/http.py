"""Requests to the judge's server: one deadline for all of a request, and no secret in a message."""

from __future__ import annotations

import asyncio
import base64
import email.utils
import json
import os
import ssl
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote
from urllib.request import getproxies, proxy_bypass

from pipeline.quality.judge.answer import NoAnswer, shown
from pipeline.redaction import redacted

KEY_VARIABLE = "OPENAI_API_KEY"
"""The environment variable with the key, as the server's other clients name it."""
MOST_BYTES = 1 << 20
"""Of a reply. A list of models or an answer has a few thousand."""
BUSY = frozenset({429, 502, 503, 504})
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 15.0
MOST_LOST = 2
"""Times that a connection may be lost, or not made, before the pair goes without an answer."""


@dataclass(frozen=True)
class Reply:
    """What a server answered.

    Args:
        status: of HTTP.
        text: the body.
        headers: with names in lower case.
    """

    status: int
    text: str
    headers: Mapping[str, str]

    @property
    def _error(self) -> dict[str, Any]:
        """OpenAI's `{"error": {...}}`; vLLM also has its fields at the top."""
        try:
            found = json.loads(self.text)
        except (ValueError, RecursionError):
            return {}
        if not isinstance(found, dict):
            return {}
        inner = found.get("error")
        return inner if isinstance(inner, dict) else found

    @property
    def message(self) -> str:
        """The server's own words about an error; the body where it has none."""
        words = self._error.get("message")
        return words if isinstance(words, str) and words else self.text

    @property
    def error_code(self) -> str:
        """The server's code for an error, such as `content_filter`; empty where there is none."""
        return str(self._error.get("code") or "")


@dataclass(frozen=True)
class Server:
    """A base URL and how to prove who asks.

    Args:
        url: without user and password.
        shown: the URL as messages have it, without secrets.
        login: `user:password` of the URL; it goes before the key.
    """

    url: str
    shown: str
    login: str | None = None

    @classmethod
    def at(cls, parts: SplitResult) -> Server:
        """A server at a URL in its parts."""
        login, _, host = parts.netloc.rpartition("@")
        url = f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
        return cls(url, redacted(url), unquote(login) or None)

    @property
    def key_advice(self) -> str:
        """What to do where the server does not know who asks."""
        if self.login:
            return "the server does not take the user and password in score.judge"
        if _key():
            return f"the server does not take the key in {KEY_VARIABLE}"
        return (
            f"set the environment variable {KEY_VARIABLE} to its key where the job runs; on a "
            "cluster, on each node that scores"
        )

    def url_advice(self, reply: Reply, model: str | None) -> str:
        """What to do where nothing is at the URL, or something else."""
        if where := reply.headers.get("location"):
            return f"it names {shown(where)}: give that server's URL as score.judge"
        if self.url.endswith("/v1"):
            which = f", and that it serves {model}" if model else ""
            return f"check the URL{which}: it should list its models at {self.shown}/models"
        return f"is it {self.shown}/v1? The URL should be the one below which /models lies"

    def send(self, method: str, path: str, body: Any, deadline_s: float) -> Reply:
        """Send a request; wait and try again while the server is busy.

        Args:
            body: plain values, sent as JSON.
            deadline_s: seconds for all of it.

        Raises:
            NoAnswer: no whole reply in time, or no connection.
        """
        data = None if body is None else json.dumps(body).encode()
        try:
            return _to_its_end(self._within(method, path, data, deadline_s))
        except TimeoutError as error:
            raise NoAnswer(
                f"judge {self.shown}: no answer in {deadline_s:.3g} s; a higher "
                "score.judge_deadline_s or fewer score.judge_frames help where it is only slow",
                server=True,
            ) from error

    async def _within(self, method: str, path: str, data: bytes | None, deadline_s: float) -> Reply:
        ends = time.monotonic() + deadline_s
        async with asyncio.timeout(deadline_s):
            lost, wait = 0, FIRST_WAIT_S
            while True:
                try:
                    reply = await self._once(method, path, data)
                except _Lost as error:
                    lost += 1
                    if lost >= MOST_LOST:
                        raise NoAnswer(f"judge {self.shown}: {error}", server=True) from error
                    pause = wait
                else:
                    if reply.status not in BUSY:
                        return reply
                    pause = _pause(reply, wait)
                    if time.monotonic() + pause > ends:
                        raise NoAnswer(
                            f"judge {self.shown}: status {reply.status}: {shown(reply.message)}; "
                            f"busy for {pause:g} s more, beyond score.judge_deadline_s",
                            server=True,
                        )
                await asyncio.sleep(pause)
                wait = min(2 * wait, LONGEST_WAIT_S)

    async def _once(self, method: str, path: str, data: bytes | None) -> Reply:
        import aiohttp

        whole = aiohttp.ClientTimeout(total=None)  # the deadline is around this
        try:
            async with (
                aiohttp.ClientSession(timeout=whole) as session,
                session.request(
                    method,
                    f"{self.url}/{path}",
                    data=data,
                    headers=self._headers(),
                    proxy=self._proxy(),
                    # aiohttp's own context is of the time of its import: before SSL_CERT_FILE
                    ssl=ssl.create_default_context() if self.url.startswith("https") else True,
                    allow_redirects=False,  # the key is for this server alone
                ) as response,
            ):
                text = await _read(response, self.shown)
                names = {name.lower(): value for name, value in response.headers.items()}
                return Reply(response.status, text, names)
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError, ssl.SSLError) as e:
            raise NoAnswer(
                f"judge {self.shown}: no safe connection: {e}; the environment variable "
                "SSL_CERT_FILE names a file of certificates to trust, and a server without TLS "
                "has http://",
                server=True,
            ) from e
        except (aiohttp.ClientError, OSError) as error:
            raise _Lost(f"{type(error).__name__}: {error}".rstrip(": ")) from error

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.login:
            code = base64.b64encode(self.login.encode()).decode()
            return headers | {"Authorization": f"Basic {code}"}
        key = _key()
        return headers | ({"Authorization": f"Bearer {key}"} if key else {})

    def _proxy(self) -> str | None:
        """That of the environment. aiohttp's own way would also send a login out of ~/.netrc."""
        scheme, _, rest = self.url.partition("://")
        return None if proxy_bypass(rest.partition("/")[0]) else getproxies().get(scheme.lower())


def _to_its_end(asked: Coroutine[Any, Any, Reply]) -> Reply:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(asked)
    with ThreadPoolExecutor(1) as pool:  # in a notebook this thread has a loop that runs
        return pool.submit(asyncio.run, asked).result()


class _Lost(Exception):
    """No connection, or one that ended before the whole reply was there."""


async def _read(response: Any, server: str) -> str:
    """The body of a reply as text, of a bounded size."""
    data = b""
    async for chunk in response.content.iter_chunked(1 << 16):
        data += chunk
        if len(data) > MOST_BYTES:
            raise NoAnswer(
                f"judge {server}: the reply has more than {MOST_BYTES} bytes; expected a few "
                "thousand",
                server=True,
            )
    return data.decode("utf-8", "replace")


def _pause(reply: Reply, otherwise: float) -> float:
    """Seconds until a busy server wants to be asked again: a number, or a date of HTTP."""
    after = reply.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(after)) if after else otherwise
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(after).timestamp() - time.time())
    except (TypeError, ValueError):
        return otherwise


def _key() -> str:
    return os.environ.get(KEY_VARIABLE, "").strip()
