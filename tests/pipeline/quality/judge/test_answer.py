"""The judge's answer is the object that was asked for, or row data that says what came instead."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.quality.judge.answer import REASON_CHARACTERS, SCHEMA, BadAnswer, read_answer
from pipeline.scores import JudgeScores
from tests.judge_server import GOOD, VERDICT

ASKED = JudgeScores(follows=4, quality=3, preserves=2, reason="the ball is red")


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"\n {GOOD}\n",
        json.dumps(VERDICT, indent=2),
        json.dumps(dict(reversed(VERDICT.items()))),
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}\n```\n",
    ],
)
def test_the_object_is_read_with_or_without_one_fence_around_it(text: str) -> None:
    assert read_answer(text) == ASKED


def changed(**values: object) -> str:
    return json.dumps(VERDICT | values)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "it is empty"),
        ("```json\n\n```", "it is empty"),
        ("The edit is good: 4 of 4.", "it is not JSON alone, but 'The edit is good: 4 of 4.'"),
        (f"Here it is: {GOOD}", "it is not JSON alone"),
        (f"{GOOD} Is that all?", "it is not JSON alone"),
        (f"{GOOD}\n{GOOD}", "it is not JSON alone"),
        (f"<think>4?</think>{GOOD}", "it is not JSON alone"),
        (f"```json\n{GOOD}\n```\nDone.", "it is not JSON alone"),
        (GOOD[:-9], "it is not JSON alone"),
        ("[4, 3, 2]", "it is no JSON object"),
        ("4", "it is no JSON object"),
        ("null", "it is no JSON object"),
        (changed(follows=5), "follows is 5; expected a whole number from 1 to 4"),
        (changed(quality=0), "quality is 0; expected a whole number"),
        (changed(preserves=-1), "preserves is -1; expected a whole number"),
        (changed(follows=3.0), "follows is 3.0; expected a whole number"),
        (changed(follows="3/4"), 'follows is "3/4"; expected a whole number'),
        (changed(follows="3"), 'follows is "3"; expected a whole number'),
        (changed(follows=True), "follows is true; expected a whole number"),
        (changed(follows=None), "follows is null; expected a whole number"),
        (changed(follows=float("nan")), "follows is NaN; expected a whole number"),
        ('{"follows": 1' + "0" * 6000 + "}", "it is not JSON alone"),
        ("[" * 200_000, "it is not JSON alone"),
        (changed(overall=4), "'overall' was not asked for"),
        (json.dumps({"follows": 4, "quality": 3, "preserves": 2}), "reason is missing"),
        (json.dumps({"reason": "r", "quality": 3, "preserves": 2}), "follows is missing"),
        ("{}", "reason is missing"),
        (f'{GOOD[:-1]}, "follows": 1}}', "it is not JSON alone"),
        (changed(reason=4), "reason is 4; expected a text"),
        (changed(reason="  "), "expected a text"),
        (changed(reason="a" * (REASON_CHARACTERS + 1)), "reason has 1001 characters"),
    ],
)
def test_anything_else_is_refused_with_what_it_is(text: str, wrong: str) -> None:
    with pytest.raises(BadAnswer) as refused:
        read_answer(text)
    assert wrong in str(refused.value)
    assert len(str(refused.value)) < 260


@settings(max_examples=40)
@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda data: data.decode("latin-1")))
def test_no_text_makes_it_raise_anything_else(text: str) -> None:
    for whole in (text, f"{{{text}}}", f"```json\n{text}\n```"):
        with pytest.raises(BadAnswer):
            read_answer(whole)


def test_a_reason_can_be_stored_and_holds_no_secret() -> None:
    read = read_answer(changed(reason="half \ud83d of one, key hf_" + "a" * 30))
    assert read.reason == "half ? of one, key ***"


def test_the_schema_for_servers_says_the_same_as_the_reader() -> None:
    from jsonschema import validate

    validate(VERDICT, SCHEMA)
    for wrong in (changed(follows=5), changed(overall=1), "{}"):
        with pytest.raises(Exception, match="."):
            validate(json.loads(wrong), SCHEMA)
