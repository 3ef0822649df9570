"""Counted work is the work that is done, and the layout that it leads to keeps the groups busy."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from cluster.layout.placement import place
from cluster.layout.work import (
    Amount,
    Work,
    inversion_forwards,
    reconstruction_forwards,
    shared_duration,
    split_duration,
)
from pipeline.algorithm.inversion import invert
from pipeline.model.scheduler import schedule_from_config
from pipeline.model.transformer import ForwardCounter
from pipeline.plan import edit_plans, highest_stored
from pipeline.quality.certificate import round_trip_db
from pipeline.records import EditSpec, Forwards
from pipeline.settings import EditingSettings, Inversion, Reconstruction, Variation
from tests.cluster.layout.simulation import Busy, shared, split
from tests.cluster.layout.test_placement import gpu_nodes, groups
from tests.named_prompts import Edit, NamedModel, edit_with
from tests.small_jobs import a_job
from tests.small_models import make_transformer, scheduler

DEFAULTS = EditingSettings(output="o")


def ratio(settings: EditingSettings, edits: int) -> float:
    work = Work.of(settings, edits)
    return work.editing / work.inversion


def test_with_the_defaults_four_edits_cost_about_nine_times_their_inversion() -> None:
    assert inversion_forwards(DEFAULTS) == 31
    # 12 guided steps with 8 branches and a reference, 18 with 4 and one.
    assert reconstruction_forwards(DEFAULTS, 4) == Forwards(plain=30, injected=12 * 8 + 18 * 4)
    assert ratio(DEFAULTS, 4) == pytest.approx(9.04, abs=0.01)
    assert Work.of(DEFAULTS, 10).units[:2] == Work.of(DEFAULTS, 4).units * 2
    assert len(Work.of(DEFAULTS, 10).units) == 3


WAYS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "shared": {"reference": "shared", "guidance_steps": (0.0, 0.5)},
    "shared, residual": {"reference": "shared", "residual": True, "guidance_steps": (0.5, 1.0)},
    "script": {"reference": "script", "start": "noise", "guidance_steps": (0.0, 1.0)},
    "source, residual": {"reference": "source", "residual": True},
    "none, residual": {"reference": "none", "residual": True},
    "a window": {"inject_steps": (0.0, 0.5), "residual": True, "guidance_steps": (0.0, 1.0)},
    "noise, a window": {"start": "noise", "inject_steps": (0.4, 0.8)},
    "no guidance": {"guidance_scale": 1.0, "reference": "shared"},
    "a negative prompt": {"negative_prompt": "blur", "reference": "shared", "residual": True},
}


@pytest.fixture(scope="module")
def model() -> NamedModel:
    transformer = make_transformer("5b")
    draw = torch.Generator().manual_seed(1)
    prompts = ("", "blur", "source", "edit 0", "edit 1", "edit 2")
    tokens = transformer.config.max_text_seq_length
    return NamedModel(
        transformer, {one: torch.randn(tokens, 32, generator=draw) for one in prompts}
    )


@pytest.mark.parametrize("way", WAYS)
def test_the_counted_forwards_are_those_that_a_model_computes(way: str, model: NamedModel) -> None:
    how = Reconstruction(**{"start": "inverted", **WAYS[way]})
    settings = replace(DEFAULTS, inversion=Inversion(steps=5), reconstruction=how)
    schedule = schedule_from_config(scheduler("5b"), 5)
    latents = torch.randn(6, 3, 16, 8, 12, generator=torch.Generator().manual_seed(2))
    for count in (1, 3):
        edits = [
            Edit(f"edit {i}", how.negative_prompt, how.guidance_scale, source_prompt="source")
            for i in range(count)
        ]
        model.forwards = ForwardCounter()
        edit_with(model, lambda level: latents[level], edits, schedule, how)
        counted = Forwards(plain=model.forwards.plain, injected=model.forwards.injected)
        assert reconstruction_forwards(settings, count) == counted


@pytest.mark.parametrize("method", ["pec", "ddim", "fixed_point"])
@pytest.mark.parametrize("start", ["inverted", 0.6, 0.1])
@pytest.mark.parametrize("round_trip", [False, True])
def test_the_counted_forwards_of_an_inversion_are_those_that_a_model_computes(
    method: Any, start: Any, round_trip: bool, model: NamedModel
) -> None:
    settings = replace(
        DEFAULTS,
        inversion=Inversion(steps=4, method=method, round_trip=round_trip),
        reconstruction=Reconstruction(start=start),
    )
    schedule = schedule_from_config(scheduler("5b"), 4)
    clean = torch.randn(3, 16, 8, 12, generator=torch.Generator().manual_seed(2))
    top = highest_stored(settings.reconstruction, 4)
    model.forwards = ForwardCounter()
    entries = invert(model.velocity(), clean, schedule, method=method, highest=top)
    if round_trip:
        round_trip_db(model.velocity(), schedule, clean, entries[-1], top)
    assert inversion_forwards(settings) == model.forwards.total


LOADS = list(product((1, 2, 8, 16), (1, 4, 16)))


def videos(groups: int, edits: int, draw: np.random.Generator) -> list[Work]:
    """20 videos and some for each group: each with its own number of edits, and its own length."""
    works = []
    for _ in range(20 * groups + int(draw.integers(1, groups + 1))):
        work = Work.of(DEFAULTS, edits)
        length = draw.uniform(0.8, 1.2)
        works.append(Work(work.inversion * length, tuple(one * length for one in work.units)))
    return works


@pytest.mark.parametrize(("gpus", "edits"), LOADS)
def test_in_the_layout_that_auto_takes_the_groups_are_busy_95_percent_of_the_time(
    gpus: int, edits: int
) -> None:
    works = videos(gpus, edits, np.random.default_rng(gpus * 100 + edits))
    placement = place(a_job(), gpu_nodes(gpus), Amount(len(works), len(works) * edits))
    taken = groups(placement)
    if placement.layout == "shared":
        busy = shared(works, taken["editing"])
    else:
        busy = split(works, taken["inversion"], taken["reconstruction"])
    assert busy.part >= 0.95


SPLIT = {
    (2, 1): (1, 0.66), (2, 4): (1, 0.55), (2, 16): (1, 0.51),
    (4, 1): (1, 0.96), (4, 4): (1, 0.82), (4, 16): (1, 0.77),
    (8, 1): (2, 0.96), (8, 4): (1, 0.94), (8, 16): (1, 0.89),
    (16, 1): (4, 0.96), (16, 4): (2, 0.94), (16, 16): (1, 0.95),
}  # fmt: skip
"""For GPUs and edits a video: how many groups of one GPU invert, and how busy all are."""


@pytest.mark.parametrize(("gpus", "edits"), SPLIT)
def test_for_contrast_the_split_layout_keeps_few_groups_busy(gpus: int, edits: int) -> None:
    works = [Work.of(DEFAULTS, edits)] * 20 * gpus
    amount = Amount(len(works), len(works) * edits)
    taken = groups(place(a_job(layout="split"), gpu_nodes(gpus), amount))
    inverting, part = SPLIT[gpus, edits]
    assert taken["inversion"] == inverting
    assert split(works, inverting, gpus - inverting).part == pytest.approx(part, abs=0.006)


@pytest.mark.parametrize("edits", [16, 64])
@pytest.mark.parametrize("count", [1, 2, 5, 12, 20])
def test_with_fewer_videos_than_keep_groups_busy_auto_takes_the_faster_layout(
    count: int, edits: int
) -> None:
    works, amount = [Work.of(DEFAULTS, edits)] * count, Amount(count, count * edits)
    placement = place(a_job(), gpu_nodes(8), amount)
    taken = groups(place(a_job(layout="split"), gpu_nodes(8), amount))
    together = shared(works, min(8, count))
    apart = split(works, taken["inversion"], taken["reconstruction"])
    took = together if placement.layout == "shared" else apart
    assert took.duration <= min(together.duration, apart.duration) / 0.95


def test_the_durations_that_a_choice_is_made_by_are_those_of_the_simulation() -> None:
    draw = np.random.default_rng(7)
    off = []
    for _ in range(200):
        count, edits = int(draw.integers(1, 60)), int(draw.integers(1, 40))
        inverting, editing = int(draw.integers(1, 5)), int(draw.integers(1, 20))
        work = Work.of(DEFAULTS, edits)
        assert shared_duration(work, count, editing) == pytest.approx(
            shared([work] * count, editing).duration
        )
        real: Busy = split([work] * count, inverting, editing)
        off.append(abs(split_duration(work, count, inverting, editing) / real.duration - 1))
    assert np.mean(off) < 0.02
    assert np.quantile(off, 0.95) < 0.12


@pytest.mark.parametrize("reference", ["empty", "shared", "script", "none"])
def test_candidates_are_counted_as_a_model_computes_them(reference: Any, model: NamedModel) -> None:
    how = Reconstruction(
        start=0.6,
        reference=reference,
        edits_at_once=8,
        candidates=(
            Variation(start=1.0, inject_steps=(0.0, 0.5)),
            Variation(guidance_scale=1.0),
            Variation(start=0.4, guidance_steps=(0.0, 1.0), inject_steps=(0.5, 1.0)),
        ),
    )
    settings = replace(DEFAULTS, inversion=Inversion(steps=5), reconstruction=how)
    schedule = schedule_from_config(scheduler("5b"), 5)
    latents = torch.randn(6, 3, 16, 8, 12, generator=torch.Generator().manual_seed(2))
    specs = [how.filled(EditSpec(f"edit {i}"), i) for i in range(2)]
    plans = edit_plans(how, specs)
    edits = [Edit(p.edit.prompt, "", p.edit.guidance_scale or 0.0) for p in plans]
    model.forwards = ForwardCounter()
    edit_with(model, lambda level: latents[level], edits, schedule, [p.settings for p in plans])
    counted = Forwards(plain=model.forwards.plain, injected=model.forwards.injected)
    assert reconstruction_forwards(settings, 2) == counted
    assert how.edits_a_unit == 2
    assert Amount(videos=3, edits=15).units(settings) == 3 * 3  # 5 edits a video, two at a time
