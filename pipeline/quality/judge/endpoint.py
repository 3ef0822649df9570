"""A judge behind an OpenAI-compatible server, such as vLLM's, over HTTP.

Every answer has one deadline from its name look-up to its last byte, waits and further attempts
included. A server that is not there is not waited for by each pair: `Absence` counts.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pipeline.quality.fingerprints import WrongModel
from pipeline.quality.judge.absence import Absence
from pipeline.quality.judge.answer import SCHEMA, BadAnswer, NoAnswer, shown
from pipeline.quality.judge.http import Reply, Server
from pipeline.quality.judge.question import Question
from pipeline.redaction import redacted

MOST_TOKENS = 512
MODELS_DEADLINE_S = 30.0
"""For the list of models, which no server computes anything for."""

INSTEAD: Mapping[str, str] = {"max_tokens": "max_completion_tokens"}
"""What newer servers call a parameter."""
OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "response_format": ("response_format", "json_schema", "schema", "guided", "structured"),
    "seed": ("seed",),
    "temperature": ("temperature",),
    "max_tokens": ("max_tokens",),
}
"""Parameters that some servers refuse, and the words in a refusal that tell which one it is."""


def is_url(judge: str) -> bool:
    """Whether a judge is a server rather than a folder or Hub name."""
    return judge.lower().startswith(("http://", "https://"))


@dataclass
class Endpoint:
    """A model at a server.

    Args:
        server: sends requests.
        model: its name there; by default the first that the server lists.
        deadline_s: seconds that one answer may take.
        absence: whether the server is worth a try.
    """

    server: Server
    model: str | None
    deadline_s: float
    absence: Absence = field(default_factory=Absence)
    _refused: set[str] = field(default_factory=set, repr=False)

    @classmethod
    def at(cls, url: str, model: str | None = None, *, deadline_s: float) -> Endpoint:
        """A server; nothing is asked of it yet.

        Raises:
            WrongModel: the URL is none.
        """
        try:
            parts = urlsplit(url.strip())
            there = bool(parts.hostname) and parts.port != 0  # an impossible port raises
        except ValueError:
            there = False
        if not there or parts.query or parts.fragment:
            raise WrongModel(
                f"score.judge: {redacted(url)}: expected the URL of an OpenAI-compatible server, "
                "such as http://host:8000/v1"
            )
        return cls(Server.at(parts), model, deadline_s)

    def name(self) -> str:
        """The model's name at the server, which is asked for it where the settings have none."""
        if self.model is None:
            self.model = self._asked(self._first_model)
        return self.model

    def identity(self) -> str:
        """The model's name: all that a server says of its weights."""
        return self.name()

    def answer(self, asked: Question) -> str:
        """The answer of the model, at temperature 0.

        Raises:
            NoAnswer: the server is not there, refuses, or is late.
            BadAnswer: there is no text in its reply, or it is cut off.
        """
        model = self.name()
        content = [_part(one) for one in asked]
        return self._asked(lambda: self._complete(model, content))

    def _asked(self, ask: Callable[[], str]) -> str:
        """Ask unless the server was not there for the last pairs."""
        self.absence.check()
        try:
            text = ask()
        except NoAnswer as error:
            if error.server:
                self.absence.missed(error)
            else:
                self.absence.met()
            raise
        except BadAnswer:
            self.absence.met()
            raise
        self.absence.met()
        return text

    def _first_model(self) -> str:
        reply = self.server.send("GET", "models", None, min(self.deadline_s, MODELS_DEADLINE_S))
        if reply.status != 200:
            raise self._refusal(reply)
        listed = _object(reply, self.server).get("data")
        names = [one.get("id") for one in listed or () if isinstance(one, dict)]
        if not names or not isinstance(names[0], str) or not names[0]:
            raise NoAnswer(
                f"judge {self.server.shown}: it lists no models in {shown(reply.text)}; "
                "score.judge_model can name one",
                server=True,
            )
        return names[0]

    def _complete(self, model: str, content: list[dict[str, Any]]) -> str:
        began = time.monotonic()
        while True:
            left = self.deadline_s - (time.monotonic() - began)
            body = _body(model, content, self._refused)
            reply = self.server.send("POST", "chat/completions", body, left)
            if reply.status == 200:
                return _text_of(_object(reply, self.server), self.server)
            refused = self._refused_parameter(reply)
            if refused is None:
                raise self._refusal(reply)
            self._refused.add(refused)

    def _refused_parameter(self, reply: Reply) -> str | None:
        """The parameter that the server does not take, if that is what it says."""
        if reply.status not in {400, 422} or reply.error_code == "content_filter":
            return None
        words = reply.message.lower()
        for name, tells in OPTIONAL.items():
            if name not in self._refused and any(word in words for word in tells):
                return name
        return None

    def _refusal(self, reply: Reply) -> NoAnswer:
        """What a status other than 200 means, and the way out."""
        what = f"judge {self.server.shown}: status {reply.status}: {shown(reply.message)}"
        if reply.error_code == "content_filter":
            return NoAnswer(f"{what}; the server's filter refused the pair", final=True)
        if reply.status in {401, 403}:
            return NoAnswer(f"{what}; {self.server.key_advice}", server=True)
        if reply.status in {404, 405} or 300 <= reply.status < 400:
            return NoAnswer(f"{what}; {self.server.url_advice(reply, self.model)}", server=True)
        if reply.status in {400, 413, 422}:
            return NoAnswer(
                f"{what}; the server refuses the question: fewer score.judge_frames make it "
                "shorter, and the model must take images"
            )
        return NoAnswer(what, server=True)


def _body(model: str, content: list[dict[str, Any]], refused: set[str]) -> dict[str, Any]:
    optional: dict[str, Any] = {
        "temperature": 0,
        "seed": 0,
        "max_tokens": MOST_TOKENS,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA},
        },
    }
    taken = {
        (INSTEAD.get(name, "") if name in refused else name): value
        for name, value in optional.items()
    }
    taken.pop("", None)
    return {"model": model, "messages": [{"role": "user", "content": content}], **taken}


def _part(one: Any) -> dict[str, Any]:
    if isinstance(one, str):
        return {"type": "text", "text": one}
    file = io.BytesIO()
    one.save(file, "PNG", compress_level=1)  # the judge sees what is stored, not a JPEG of it
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def _object(reply: Reply, server: Server) -> dict[str, Any]:
    try:
        found = json.loads(reply.text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise NoAnswer(
            f"judge {server.shown}: expected a JSON object, got {shown(reply.text)}; "
            f"{server.url_advice(reply, None)}",
            server=True,
        )
    return found


def _text_of(reply: dict[str, Any], server: Server) -> str:
    """The text of a completion."""
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise BadAnswer(f"there is no choices[0].message in {shown(json.dumps(reply))}")
    if refusal := message.get("refusal"):
        raise NoAnswer(
            f"judge {server.shown}: the model refuses: {shown(str(refusal))}", final=True
        )
    if choice.get("finish_reason") == "content_filter":
        raise NoAnswer(f"judge {server.shown}: the server's filter refused the answer", final=True)
    if choice.get("finish_reason") == "length":
        raise BadAnswer(f"it is cut off after {MOST_TOKENS} tokens")
    text = message.get("content")
    if not isinstance(text, str):
        raise BadAnswer(f"there is no text in {shown(json.dumps(message))}")
    return text
