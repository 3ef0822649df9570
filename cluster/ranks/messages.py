"""What an owner and its ranks say to each other: records, one line of JSON each.

Importing this costs no torch: the owner has none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.errors import ErrorCode
from pipeline.records import InversionResult, VideoSpec, from_dict

Work = Literal["edits", "prompts"]


@dataclass(frozen=True)
class Start:
    """The first message: what a rank is for. It answers once it is ready to work.

    Args:
        work: what the rank loads: the model, or the text encoder.
        settings: a `pipeline.settings.EditingSettings` as plain values.
        device: `cpu` or `gpu`.
        ulysses, ring, cfg: the degrees of the group.
    """

    work: Work
    settings: dict[str, Any]
    device: str
    ulysses: int | Literal["auto"] = "auto"
    ring: int = 1
    cfg: int = 1


@dataclass(frozen=True)
class EncodePrompts:
    """Store the embeddings of prompts that storage does not hold yet."""

    prompts: Sequence[str]


@dataclass(frozen=True)
class InvertVideo:
    """Invert a video, or find its trajectory stored; the answer is an `InversionResult`."""

    video: VideoSpec


@dataclass(frozen=True)
class EditVideo:
    """Make the edits of an inverted video; the answer is a list of `EditResult`."""

    video: VideoSpec
    inversion: InversionResult


Request = EncodePrompts | InvertVideo | EditVideo


@dataclass(frozen=True)
class Answer:
    """What a rank answers.

    Args:
        result: of the request, as plain values.
        error_code, error: why there is none.
        needs_restart: the rank cannot take another request.
        refusal: why the rank cannot work at all.
    """

    result: Any = None
    error_code: ErrorCode | None = None
    error: str | None = None
    needs_restart: bool = False
    refusal: str | None = None


def to_line(message: Start | Request | Answer) -> bytes:
    return json.dumps(asdict(message)).encode() + b"\n"


def parse_request(line: bytes) -> Request:
    """The request of a line: each kind has fields of its own."""
    values = json.loads(line)
    if "prompts" in values:
        return from_dict(EncodePrompts, values)
    if "inversion" in values:
        return from_dict(EditVideo, values)
    return from_dict(InvertVideo, values)


def parse_answer(line: bytes) -> Answer:
    return from_dict(Answer, json.loads(line))
