"""The rules of the benchmark of verdicts on edits that are drawn: all about them is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from jobs.demo import world
from pipeline.quality.scoring import Scorer
from pipeline.settings import ScoreSettings
from tests.benchmarks.verdicts import Row, accepted, counts, fault, looked_at, stored

THING = world.Object("red", "square", 11.0, world.Path((24.0, 30.0), "right", 16.0))
SCENE = world.Scene((THING,), "striped")
MOVED = world.Path((24.0, 40.0), "right", 16.0)


def edit(kind: str, wish: world.Scene, shown: world.Scene) -> Row:
    """The row of an edit that was to show `wish` and shows another scene."""
    source, frames = (stored(torch.from_numpy(world.draw(one))) for one in (SCENE, shown))
    scorer = Scorer.load(ScoreSettings(frames=True))
    return {"kind": kind} | looked_at(scorer, SCENE, wish, source, frames)


@pytest.mark.parametrize(
    ("kind", "wish"),
    [("colour", world.with_colour(SCENE, "green")), ("shape", world.with_shape(SCENE, "cross"))],
)
def test_what_was_asked_for_is_accepted_and_a_copy_or_another_background_is_not(
    kind: str, wish: world.Scene
) -> None:
    right, copy = edit(kind, wish, wish), edit(kind, wish, SCENE)
    ground = edit(kind, wish, world.with_background(wish, "gray"))
    assert [fault(row) for row in (right, copy, ground)] == ["nothing wrong", kind, "background"]
    assert [accepted(row, "given") for row in (right, copy, ground)] == [True, False, False]
    assert not accepted(copy, "none")
    assert counts([right, copy, ground], "given") == {
        "edits": 3,
        "good": 1,
        "accepted": 1,
        "both": 1,
    }


def test_frames_cannot_see_a_wrong_colour_in_the_right_place() -> None:
    row = edit("colour", world.with_colour(SCENE, "green"), world.with_colour(SCENE, "blue"))
    assert fault(row) == "colour"
    assert accepted(row, "given")


def test_an_object_out_of_its_place_spoils_the_background() -> None:
    wish = world.with_colour(SCENE, "green")
    shown = replace(wish, objects=(replace(wish.objects[0], path=MOVED),))
    row = edit("colour", wish, shown)
    assert fault(row) != "nothing wrong"
    assert not accepted(row, "given")
    assert np.isclose(row["given.changed_fraction"], row["none.changed_fraction"])
