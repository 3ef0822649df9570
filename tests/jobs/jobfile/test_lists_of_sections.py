"""A list of sections in a job file: every problem with its place, and values that come back."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
import yaml

from jobs.errors import JobError
from jobs.spec import JobSpec, parse_job
from pipeline.records import from_dict
from pipeline.settings import EditingSettings, Variation


def job(candidates: str, **how: Any) -> JobSpec:
    values = {"candidates": yaml.safe_load(candidates), **how}
    return parse_job({"manifest": "m", "output": "o", "reconstruction": values}, source="job.yaml")


def test_candidates_are_read_and_written_and_reach_a_rank_as_they_are() -> None:
    made = job("[{noise: 0.5, guidance_steps: [0, 1]}, {start: inverted, mask: none}]")
    expected = (
        Variation(noise=0.5, guidance_steps=(0.0, 1.0)),
        Variation(start="inverted", mask="none"),
    )
    assert made.reconstruction.candidates == expected
    again = yaml.safe_load(yaml.safe_dump(made.plain()))
    assert parse_job(again, source="resolved") == made
    sent = json.loads(json.dumps(asdict(made.editing())))
    assert from_dict(EditingSettings, sent) == made.editing()


def test_there_are_no_candidates_where_none_are_named() -> None:
    assert job("null").reconstruction.candidates == ()
    assert job("[]").reconstruction.tries == 1


@pytest.mark.parametrize(
    ("candidates", "problem"),
    [
        (
            "[{start: 1}, {noise: 1}, {strat: 0.2}]",
            "candidates: number 3: strat: there is no such key; did you mean 'start'?",
        ),
        (
            "[{noise: 2}]",
            "reconstruction.candidates: number 1: noise: is 2; expected a number from 0 to 1",
        ),
        ("[7]", "reconstruction.candidates: number 1: is 7; expected a section"),
        ("{start: 0.8}", "write it as a list: `- start: ...`"),
        ("3", "reconstruction.candidates: is 3; expected a list of sections"),
        ("[{noise: 0}]", "candidates: number 1 comes out as number 0, the edit itself"),
        ("[{start: 1}, {start: inverted}, {start: 1.0}]", "number 3 comes out as number 1"),
        ("[{noise: 0.5, seed: 1}, {noise: 0.5, seed: 1}]", "number 2 comes out as number 1"),
        ("[{guidance_steps: [0.5, 0.2]}]", "candidates: number 1: guidance_steps is [0.5, 0.2]"),
        ("[{start: noise, mask: auto}]", "number 1: mask is auto and start is noise"),
    ],
)
def test_what_is_wrong_with_a_candidate_has_its_number(candidates: str, problem: str) -> None:
    with pytest.raises(JobError) as error:
        job(candidates)
    assert problem in str(error.value)


def test_two_candidates_with_noise_of_their_own_differ_in_their_seeds() -> None:
    made = job("[{noise: 0.5}, {noise: 0.5}]")
    assert made.reconstruction.seeded == (1, 2)


def test_rounds_that_would_all_be_the_same_are_refused() -> None:
    with pytest.raises(JobError, match=r"until_accepted is 2, and no candidate has noise"):
        job("[{start: 1}]", until_accepted=2)
