"""What an owner and its ranks say to each other: records, one line of JSON each.

Before the JSON of a line stands the number of the request that it belongs to: a group has two at a
time. The start is number 0.

Importing this costs no torch: the owner has none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pipeline.errors import ErrorCode
from pipeline.model.checkpoint import CheckpointPin
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
        checkpoint: what the driver found; by default what the settings name is looked for.
        branches_at_once: most branches that go through a block of the transformer at once; None
            leaves it to the device and its memory.
    """

    work: Work
    settings: dict[str, Any]
    device: str
    ulysses: int | Literal["auto"] = "auto"
    ring: int = 1
    cfg: int = 1
    checkpoint: CheckpointPin | None = None
    branches_at_once: int | None = None


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
    """Make the edits of an inverted video; the answer is a list of `EditResult`.

    Args:
        number: of the round: how often candidates of them were made before.
    """

    video: VideoSpec
    inversion: InversionResult
    number: int = 0


Request = EncodePrompts | InvertVideo | EditVideo


@dataclass(frozen=True)
class Answer:
    """What a rank answers.

    Args:
        result: of the request, as plain values.
        error_code, error: why there is none.
        needs_restart: the rank cannot take another request, whether this one failed or not.
        refusal: why the rank cannot work at all.
        seconds: that the request held the rank; what went on beside other requests is not in it.
    """

    result: Any = None
    error_code: ErrorCode | None = None
    error: str | None = None
    needs_restart: bool = False
    refusal: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Progress:
    """What a rank reports while it works.

    Args:
        did: what it did last; None where it goes on with the same.
        at_work: the numbers of the requests that it works on, reads ahead for, or writes for.
    """

    did: str | None = None
    at_work: Sequence[int] = ()


GO_ON = b"go on"
"""What the owner sends in the place of JSON when all ranks have answered a request with an error:
before, a rank of several takes no other request."""


def to_line(message: Start | Request | Answer | Progress) -> bytes:
    return json.dumps(asdict(message)).encode() + b"\n"


def numbered(number: int, line: bytes) -> bytes:
    return b"%d %b" % (number, line)


def split_number(line: bytes) -> tuple[int, bytes]:
    """The number of a line, and what stands behind it."""
    number, _, rest = line.partition(b" ")
    return int(number), rest


def parse_request(line: bytes) -> Request:
    """The request of a line: each kind has fields of its own."""
    values = json.loads(line)
    if "prompts" in values:
        return from_dict(EncodePrompts, values)
    if "inversion" in values:
        return from_dict(EditVideo, values)
    return from_dict(InvertVideo, values)


def parse_report(line: bytes) -> Answer | Progress:
    """What a rank sends."""
    values = json.loads(line)
    return Progress(**values) if "at_work" in values else from_dict(Answer, values)


def joined(answers: Sequence[Answer]) -> Answer:
    """One answer of the answers of all ranks.

    Where ranks shared a request out, each lists its own results at their places, and None at those
    of the others.
    """
    failed = next((answer for answer in answers if answer.error_code), None)
    joint = replace(failed or answers[0], seconds=max(answer.seconds for answer in answers))
    if failed or not isinstance(joint.result, list):
        return joint
    places = zip(*(answer.result for answer in answers), strict=True)
    return replace(joint, result=[next((r for r in one if r is not None), None) for one in places])


def ran_out_of_memory(answers: Sequence[Answer]) -> bool:
    """Whether ranks that ran out of memory need a restart for it: other ranks wait for them."""
    codes = {answer.error_code for answer in answers}
    return ErrorCode.OUT_OF_MEMORY in codes and any(answer.needs_restart for answer in answers)
