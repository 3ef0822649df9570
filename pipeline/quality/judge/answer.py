"""The judge's answer, read strictly: the JSON object that was asked for, or an error that says why.

One code fence around the whole object is allowed: many models write it whatever they are asked.
Nothing else is: a score that is guessed from prose would be taken for one that was given.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pipeline.redaction import redacted
from pipeline.scores import JudgeScores

SCORES = ("follows", "quality", "preserves")
KEYS = ("reason", *SCORES)
LOWEST, HIGHEST = 1, 4
REASON_CHARACTERS = 1000
SHOWN_CHARACTERS = 120
"""Of an answer that cannot be used, in the message about it."""

SCHEMA = {
    "type": "object",
    "properties": {
        "reason": {"type": "string"},
        **{name: {"type": "integer", "enum": [*range(LOWEST, HIGHEST + 1)]} for name in SCORES},
    },
    "required": [*KEYS],
    "additionalProperties": False,
}
"""The object as a JSON schema, for servers that hold a model to one."""

_FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)


class NoAnswer(Exception):
    """The judge gave no answer for a pair; the text names what came and the way out.

    Args:
        final: asked again later, it would do the same.
        server: nothing is wrong with this pair: the next one may meet the same.
    """

    def __init__(self, message: str, *, final: bool = False, server: bool = False) -> None:
        super().__init__(redacted(message))
        self.final = final
        self.server = server


class BadAnswer(Exception):
    """An answer that is not the JSON object; the text says what is wrong with it."""


def read_answer(text: str) -> JudgeScores:
    """The scores in an answer.

    Raises:
        BadAnswer: it is anything else than the object that was asked for.
    """
    bare = text.strip()
    if fenced := _FENCE.fullmatch(bare):
        bare = fenced[1]
    if not bare.strip():
        raise BadAnswer("it is empty")
    try:
        found = json.loads(bare, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:  # also of a number with too many digits
        raise BadAnswer(f"it is not JSON alone, but {shown(text)}") from error
    if not isinstance(found, dict):
        raise BadAnswer(f"it is no JSON object, but {shown(text)}")
    missing = [key for key in KEYS if key not in found]
    if missing or (more := found.keys() - {*KEYS}):
        what = f"{missing[0]} is missing" if missing else f"{min(more)!r} was not asked for"
        raise BadAnswer(f"{what} in {shown(text)}")
    follows, quality, preserves = (_whole_number(name, found[name]) for name in SCORES)
    return JudgeScores(follows, quality, preserves, _reason(found["reason"]))


def shown(text: str) -> str:
    """The beginning of a text, in quotes, on one line, without secrets."""
    safe = redacted(text.strip())
    return repr(safe if len(safe) <= SHOWN_CHARACTERS else f"{safe[:SHOWN_CHARACTERS]}…")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def _whole_number(name: str, value: Any) -> int:
    if type(value) is not int or not LOWEST <= value <= HIGHEST:  # True is an int, too
        raise BadAnswer(
            f"{name} is {shown(json.dumps(value))[1:-1]}; expected a whole number from {LOWEST} "
            f"to {HIGHEST}"
        )
    return value


def _reason(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadAnswer(f"reason is {shown(json.dumps(value))[1:-1]}; expected a text")
    if len(value) > REASON_CHARACTERS:
        raise BadAnswer(f"reason has {len(value)} characters; expected {REASON_CHARACTERS} at most")
    # JSON can hold half of a character ("\ud83d"), which no file of results can.
    return redacted(value.strip().encode("utf-8", "replace").decode())
