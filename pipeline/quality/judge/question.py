"""What the judge is asked: the fixed prompt, with the request and the frames of a pair in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

VERSION = 1
"""Of how frames and texts become a question. A higher one means that all is judged anew."""

Question = tuple["str | Image", ...]
"""Texts and images in the order in which the judge gets them, all of one message."""


@dataclass(frozen=True)
class Prompt:
    """The parts of `prompt.txt`.

    Args:
        before, after: what stands before and after the frames.
        again: what is added once an answer could not be used.
    """

    before: str
    after: str
    again: str

    @classmethod
    @cache
    def read(cls) -> Prompt:
        """The prompt that came with this package."""
        text = (files(__package__) / "prompt.txt").read_text(encoding="utf-8")
        before, rest = text.split("\n[frames]\n")
        after, again = rest.split("\n[again]\n")
        return cls(before.strip(), after.strip(), again.strip())


def fingerprint(model: str, frames: int) -> str:
    """16 hex digits for a model, the prompt, and how many frames it is shown.

    Args:
        model: what stands for the model and its weights.
    """
    prompt = Prompt.read()
    parts = (str(VERSION), prompt.before, prompt.after, prompt.again, str(frames), model)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def question(
    source: Tensor, edit: Tensor, frames: int, prompt: str, source_prompt: str, instruction: str
) -> Question:
    """The question about one pair.

    Args:
        source, edit: uint8 [F, H, W, 3], RGB; where the lengths differ the shorter one counts.
        frames: how many of each are shown, evenly chosen.
        prompt, source_prompt: what the edit and the source show; `source_prompt` may be empty.
        instruction: what a person would ask for; where it is empty the prompts say it.
    """
    from PIL import Image

    chosen = evenly(frames, min(len(source), len(edit)))
    parts: list[str | Image.Image] = [
        Prompt.read().before.replace("{request}", _request(prompt, source_prompt, instruction))
    ]
    for number, index in enumerate(chosen, 1):
        for name, clip in (("Source", source), ("Edit", edit)):
            parts += [
                f"{name}, frame {number} of {len(chosen)}:",
                Image.fromarray(clip[index].cpu().numpy()),
            ]
    return (*parts, Prompt.read().after)


def again(asked: Question, wrong: str) -> Question:
    """The same question once more, with what was wrong with the answer."""
    return (*asked, Prompt.read().again.replace("{wrong}", wrong))


def evenly(wanted: int, length: int) -> Sequence[int]:
    """The middles of `wanted` equal parts of a clip; all of its frames if it has fewer."""
    count = min(wanted, length)
    return [(2 * part + 1) * length // (2 * count) for part in range(count)]


def _request(prompt: str, source_prompt: str, instruction: str) -> str:
    if instruction:
        return f"This was asked for: {instruction}"
    if source_prompt:
        return f"The source shows: {source_prompt}\nThe edit should show: {prompt}"
    return f"The edit should show: {prompt}"
