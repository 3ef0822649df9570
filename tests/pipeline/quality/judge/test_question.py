"""What the judge is asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.quality.judge.question import Prompt, again, evenly, fingerprint, question
from tests.judge_server import GOOD


def clip(start: int, frames: int = 9) -> torch.Tensor:
    """Frames of one grey each, which tells them apart."""
    greys = torch.arange(start, start + frames, dtype=torch.uint8)
    return greys.view(-1, 1, 1, 1).expand(-1, 8, 12, 3)


@pytest.mark.parametrize(
    ("wanted", "length", "chosen"),
    [
        (4, 49, [6, 18, 30, 42]),
        (1, 49, [24]),
        (4, 9, [1, 3, 5, 7]),
        (4, 4, [0, 1, 2, 3]),
        (64, 5, [0, 1, 2, 3, 4]),
        (3, 1, [0]),
    ],
)
def test_frames_are_the_middles_of_equal_parts(wanted: int, length: int, chosen: list) -> None:
    assert [*evenly(wanted, length)] == chosen


def test_source_and_edit_come_in_pairs_of_the_same_moment_each_with_its_name() -> None:
    asked = question(clip(0), clip(100, 10), 2, "a red ball", "a ball", "")
    shown = [one if isinstance(one, str) else int(np.asarray(one)[0, 0, 0]) for one in asked]
    assert shown[1:-1] == [
        "Source, frame 1 of 2:", 2, "Edit, frame 1 of 2:", 102,
        "Source, frame 2 of 2:", 6, "Edit, frame 2 of 2:", 106,
    ]  # fmt: skip
    assert asked[2].size == (12, 8)
    assert asked[-1] == Prompt.read().after


@pytest.mark.parametrize(
    ("source_prompt", "instruction", "request_"),
    [
        ("a ball", "make it red", "This was asked for: make it red\n"),
        ("a ball", "", "The source shows: a ball\nThe edit should show: a {red} ball\n"),
        ("", "", "The edit should show: a {red} ball\n"),
    ],
)
def test_the_instruction_says_what_was_asked_for_else_the_prompts(
    source_prompt: str, instruction: str, request_: str
) -> None:
    first = question(clip(0), clip(9), 1, "a {red} ball", source_prompt, instruction)[0]
    assert request_ in first
    assert "{request}" not in first


def test_a_second_question_says_what_was_wrong_with_the_first_answer() -> None:
    asked = question(clip(0), clip(9), 1, "a red ball", "", "")
    assert again(asked, "follows is 5")[:-1] == asked
    assert "follows is 5" in again(asked, "follows is 5")[-1]


def test_the_fingerprint_is_of_model_prompt_and_frames() -> None:
    assert fingerprint("m", 4) == fingerprint("m", 4)
    assert len({fingerprint("m", 4), fingerprint("n", 4), fingerprint("m", 5)}) == 3
    assert len(fingerprint("m", 4)) == 16


def test_the_prompt_asks_for_each_key_of_the_answer() -> None:
    for key in ('"reason"', '"follows"', '"quality"', '"preserves"'):
        assert key in Prompt.read().after
    assert GOOD not in Prompt.read().after  # an example would be repeated
